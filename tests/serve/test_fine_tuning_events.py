"""The stream of a fine-tuning job's events: each has its id, and a reader that was cut off goes on behind the last."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from scripted_house import NO_CERTIFICATES, House
from sqlalchemy import update

from ryorin.catalog import jobs
from ryorin.catalog.fine_tuning import KIND, PREFIX, FineTuning, add_event
from ryorin.catalog.tables import JobEvent
from ryorin.digests import new_id


def made(house: House, tenant: str, *messages: str) -> str:
    """A job that has ended, with these events."""
    wanted = FineTuning(model="tiny", base="tiny", training_file="file-none")
    with house.catalog.session() as session:
        job_id = new_id(PREFIX)
        jobs.enqueue(session, house.ids[tenant], KIND, wanted.to_json(), job_id=job_id)
        for message in messages:
            add_event(session, house.ids[tenant], job_id, message)
        assert jobs.end(session, house.ids[tenant], job_id)
    return job_id


def followed(house: House, job_id: str, last: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {house.keys['support']}"} | ({} if last is None else {"last-event-id": last})
    url = f"{house.url}/v1/fine_tuning/jobs/{job_id}/events?stream=true"
    return httpx.get(url, headers=headers, timeout=60, verify=NO_CERTIFICATES)


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """(id, data) of each event. The stream's end has no id."""
    assert response.status_code == 200, response.text
    *events, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    found = []
    for event in events:
        first, second = event.split("\n")
        assert first.startswith("id: ") and second.startswith("data: ")
        found.append((first.removeprefix("id: "), orjson.loads(second.removeprefix("data: "))))
    return found


def test_every_event_has_its_id_and_a_reader_goes_on_behind_the_last(standing_house: House) -> None:
    job_id = made(standing_house, "support", "one", "two", "three", "four")
    events = events_of(followed(standing_house, job_id))
    assert [data["message"] for _, data in events] == ["one", "two", "three", "four"]
    assert all(event_id == data["id"] for event_id, data in events)
    for place, (event_id, _) in enumerate(events):
        assert events_of(followed(standing_house, job_id, event_id)) == events[place + 1 :]
    assert events_of(followed(standing_house, job_id, "")) == events


def test_events_of_long_ago_are_not_told_again(standing_house: House) -> None:
    job_id = made(standing_house, "support", "old", "older than a minute", "new")
    events = events_of(followed(standing_house, job_id))
    with standing_house.catalog.session() as session:
        for event_id, _ in events[:2]:
            earlier = {"created_at": JobEvent.created_at - 600}
            session.execute(update(JobEvent).where(JobEvent.id == event_id).values(earlier))
    assert [data["message"] for _, data in events_of(followed(standing_house, job_id, events[1][0]))] == ["new"]
    assert events_of(followed(standing_house, job_id, events[2][0])) == []


@pytest.mark.parametrize("owner", ["support", "people"])
def test_an_id_that_is_none_of_the_jobs_is_refused(standing_house: House, owner: str) -> None:
    job_id = made(standing_house, "support", "one")
    other = made(standing_house, owner, "another job's")
    with standing_house.catalog.session() as session:
        foreign = session.query(JobEvent).filter_by(job_id=other).one().id
    for last in ("ftevent-none", foreign):
        response = followed(standing_house, job_id, last)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "Last-Event-ID")
        assert last in error["message"] and "leave it out" in error["message"]
