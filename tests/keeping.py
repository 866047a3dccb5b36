"""Does with an open store what a run's keeper does."""

from harvester.dataset.dataset import Store


def keep(store: Store) -> None:
    """Commit what was recorded, and publish what is due."""
    store.commit(store.take_batch())
    if store.due:
        store.publish()
