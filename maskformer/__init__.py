"""The model family: tensors and numpy; knows no raster, no volume, no Prefect, no MLflow."""
