"""Results -> MLflow: sweeps, trainings and studies. Owns mlflow.

Only the driver writes, and it creates the database before any worker starts: two processes that first touch a new one
race each other's migrations, so that is done under a lock.
"""

from pipelines.track.benchmarks import record_benchmark
from pipelines.track.cell_runs import frequencies
from pipelines.track.database import connect, tracking_uri, warm
from pipelines.track.examinations import record_examination
from pipelines.track.reproductions import record_reproduction
from pipelines.track.studies import StudyTracker
from pipelines.track.sweeps import Tracker
from pipelines.track.training import Training

__all__ = [
    "StudyTracker",
    "Tracker",
    "Training",
    "connect",
    "frequencies",
    "record_benchmark",
    "record_examination",
    "record_reproduction",
    "tracking_uri",
    "warm",
]
