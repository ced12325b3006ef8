"""Results -> MLflow: sweeps, trainings, studies and reproductions. Owns mlflow.

Only the driver writes, and it makes the database before any worker starts: two processes that first touch a new one
race each other's migrations, so that is done under a lock.
"""

from pipelines.track.database import connect, tracking_uri, warm
from pipelines.track.examinations import examination
from pipelines.track.reproductions import reproduced
from pipelines.track.sweeps import Tracker, forget, frequencies, recorded
from pipelines.track.training import Training

__all__ = [
    "Tracker",
    "Training",
    "connect",
    "examination",
    "forget",
    "frequencies",
    "recorded",
    "reproduced",
    "tracking_uri",
    "warm",
]
