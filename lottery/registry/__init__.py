"""This room talks to MLflow: it writes, finds and shows runs, logged models and registered model versions."""
