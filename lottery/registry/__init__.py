"""Everything that talks to MLflow: runs, logged models, registered versions, and how they are shown."""
