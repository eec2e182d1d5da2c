"""Worker machines: record keys carried by Celery."""
