"""Does with an open store what a run's keeper does."""

from harvester.dataset.dataset import Dataset


def keep(store: Dataset) -> None:
    """Commit what was recorded, and publish what is due."""
    store.commit(store.take_batch())
    if store.due:
        store.publish()
