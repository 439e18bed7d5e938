"""A trained model behind HTTP: embeddings in, gene profiles out (docs/serving.md).

bytes --wire--> request --menu--> order --service--> job --batches--> engine --> arrays --> answer

`app` is the HTTP side and knows no model, `engine` the device's side and knows no HTTP. FastAPI,
uvicorn, pydantic and prometheus_client are the extra ``serve`` and are imported in this room alone.
"""
