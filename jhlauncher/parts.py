"""The parts of the service, wired together: what each needs of the others, and in which order they start and stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from traitlets import TraitError
from traitlets.config import Configurable

from .access import Access
from .activity import Activity
from .audit import Audit
from .batches import Batches
from .classes import Classes
from .database import Database
from .feed import Feed
from .hub import Hub
from .invitations import Invitations
from .launcher import Launcher
from .lifecycle import Lifecycle
from .mailer import Mailer
from .metrics import Metrics
from .news import News
from .outage import Outage
from .people import People
from .planning import Planner
from .policy import Policy
from .progress import Progress
from .queue import Pace, StartBound
from .reconciler import Reconciler
from .register import Register
from .replicas import Replicas
from .signing import Signer, derive_key
from .starting import Starter
from .store import Store
from .worker import Worker

CONFIGURABLE: list[type[Configurable]] = [
    Hub, Database, Store, Replicas, Policy, Progress, StartBound, Feed, News, Starter, Launcher, Reconciler,
    Activity, Invitations, Mailer,
]  # fmt: skip


class Parts:
    """All parts but the HTTP server.

    Args:
        parent: whose configuration they have.
        signing_key: for launch options; "": derived from the token at the Hub.

    Raises:
        TraitError: a setting is missing, wrong, or contradicts another.

    """

    def __init__(self, parent: Configurable, signing_key: str) -> None:
        self.hub = Hub(parent=parent)
        self.hub.validate_settings()
        try:
            self.signer = Signer(signing_key or derive_key(self.hub.api_token))
        except ValueError as error:
            raise TraitError(f"LauncherApp.signing_key: {error}") from None
        self.database = Database(parent=parent)
        self.database.validate_settings()
        self.store = Store(parent=parent, database=self.database)
        batches = Batches(self.store)
        self.bound, pace = StartBound(parent=parent), Pace()
        self.feed = Feed(parent=parent, store=self.store, batches=batches, bound=self.bound, pace=pace)
        self.news = News(parent=parent, store=self.store, feed=self.feed)
        self.reconciler = Reconciler(parent=parent, hub=self.hub, store=self.store)
        self.access = Access(self.hub)
        self.planner = Planner(self.access, Policy(parent=parent), self.store, self.feed, self.signer)
        self.launcher = Launcher(
            parent=parent,
            hub=self.hub,
            access=self.access,
            planner=self.planner,
            store=self.store,
            feed=self.feed,
            reconciler=self.reconciler,
            signer=self.signer,
        )
        self.activity = Activity(parent=parent, hub=self.hub)
        self.classes = Classes(
            launcher=self.launcher,
            access=self.access,
            planner=self.planner,
            store=self.store,
            batches=batches,
            feed=self.feed,
            activity=self.activity,
            signer=self.signer,
        )
        mailer = Mailer(parent=parent)
        mailer.validate_settings()
        register = Register(self.database)
        self.invitations = Invitations(parent=parent, register=register, mailer=mailer, signer=self.signer)
        self.people = People(self.hub, register, self.invitations, self.signer, self.launcher.stop)
        self.metrics, audit = Metrics(), Audit(parent=parent)
        self.hub.observers.append(self.metrics.hub_request)
        self.store.observers += [self.metrics.changed, audit.changed]
        self.progress = Progress(parent=parent, hub=self.hub)
        self.outage = Outage(self.hub, self.feed)
        lifecycle = Lifecycle(
            parent=parent,
            hub=self.hub,
            store=self.store,
            feed=self.feed,
            bound=self.bound,
            pace=pace,
            starter=Starter(parent=parent, hub=self.hub, progress=self.progress, signer=self.signer),
            stopper=self.launcher.stopper,
            signer=self.signer,
            outage=self.outage,
            measure=self.metrics.phase,
            start_timeout=self.launcher.start_timeout,
            token_lifetime=self.launcher.token_lifetime,
        )
        self.worker = Worker(
            parent=parent,
            store=self.store,
            replicas=Replicas(parent=parent, database=self.database),
            lifecycle=lifecycle,
            bound=self.bound,
            outage=self.outage,
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """What requests need is open."""
        async with AsyncExitStack() as stack:
            for part in (self.database, self.hub):
                await part.start()
                stack.push_async_callback(part.stop)
            stack.push_async_callback(self.progress.stop)
            stack.push_async_callback(self.activity.stop)
            yield

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Launches go on; at the end they are left to the next process, or to another replica."""
        async with AsyncExitStack() as stack:
            for part in (self.feed, self.news, self.reconciler, self.worker):
                await part.start()
                stack.push_async_callback(part.stop)
            stack.push_async_callback(self.outage.close)
            stack.push_async_callback(self.launcher.stopper.close)
            yield
