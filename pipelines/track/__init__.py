"""Results -> MLflow: sweeps, trainings and studies. Owns mlflow.

Only the driver writes, and it makes the database before any worker starts: two processes that first touch a new one
race each other's migrations, so that is done under a lock.
"""

from pipelines.track.database import connect, tracking_uri, warm
from pipelines.track.examinations import examination
from pipelines.track.reproductions import reproduced
from pipelines.track.studies import Study, runs_of
from pipelines.track.sweeps import Tracker, forget, frequencies, recorded
from pipelines.track.training import Training

__all__ = [
    "Study",
    "Tracker",
    "Training",
    "connect",
    "examination",
    "forget",
    "frequencies",
    "recorded",
    "reproduced",
    "runs_of",
    "tracking_uri",
    "warm",
]
