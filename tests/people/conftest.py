"""What the tests of people share: a mail server for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.people.mail import MailServer


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    with MailServer(tmp_path_factory.mktemp("mail")) as server:
        yield server


@pytest.fixture
def well_behaved(mail: MailServer) -> None:
    """It has no mail, and takes all."""
    mail.mails.clear()
    mail.refused.clear()
    mail.on_data = None
