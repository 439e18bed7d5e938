"""Diffusion in noise-level form: x = x0 + sigma n, with no network and no data in sight.

Time is the noise level itself (sigma(t) = t and s(t) = 1 in the terms of EDM, Karras et al. 2022,
arXiv 2206.00364), so that a few small modules hold all of the mathematics::

    training    noise.LogNormal --sigma--> denoiser.add_noise --> row_losses(F, target)
                                                     |  same scalings
    network F(x, level) --denoiser.make_denoiser--+  |
    published eps network --ddpm.make_vp_denoiser-+--+--> D(x, sigma) = E[x0 | x]
                                                     |
       guidance.guide, inpaint.given: Denoiser -> Denoiser, as often as wanted
                                                     |
               +-------------------------+-----------+---------------+
               v                         v                           v
    denoiser.conditional_mean   ladders.* --rungs--> sampler.draw   likelihood.log_likelihood
    D(0, inf) = E[x0]           rules.*, stochastic_rules.*         ln p(x0)
    1 evaluation                sampler.spot_keys --> [n l g]

The condition (a patch embedding) and the weights are bound before a network gets here; a sampler
sees `denoiser.Denoiser` and nothing else. `ddpm` alone has steps of its own, `ddpm.ancestral`,
since only they use the published network's learned variance.
"""
