"""Diffusion in noise-level form: x = x0 + sigma n, with no network and no data in sight.

Time is the noise level itself (sigma(t) = t and s(t) = 1 in the terms of EDM, Karras et al. 2022,
arXiv 2206.00364), so that a few small modules hold all of the mathematics::

    training    noise.LogNormal --sigma--> denoiser.denoising_loss(network, x0, mask, key)
                                                     |  same scalings, weight 1
    network F(x, level) --denoiser.make_denoiser--> D(x, sigma) = E[x0 | x]
                                                     |
               +-------------------------------------+------------------+
               v                                                        v
    denoiser.conditional_mean            ladders.karras --rungs--> sampler.draw
    D(0, inf) = E[x0], 1 evaluation      sampler.spot_keys ---keys--->  [n l g] samples
                                         rules.*: how each step is made

The condition (a patch embedding) and the weights are bound before a network gets here; a sampler
sees `denoiser.Denoiser` and nothing else.
"""
