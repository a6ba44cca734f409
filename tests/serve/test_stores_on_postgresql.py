"""Those tests of files and vector stores that lean on the database, again with the catalog on PostgreSQL."""

from __future__ import annotations

import pytest
from scripted_house import House
from test_files_api import (  # noqa: F401
    test_a_deleted_file_is_gone_with_its_bytes_unless_another_file_has_the_same,
    test_a_file_comes_back_as_it_went_in,
    test_an_expired_file_is_not_found_and_is_cleared_away,
    test_lists_by_page_order_and_purpose,
    test_the_same_request_twice_makes_one_file,
)
from test_vector_stores_api import (  # noqa: F401
    client,
    store,
    test_a_batch_is_cancelled_and_a_file_of_it_may_come_again,
    test_a_batch_is_uploaded_polled_and_paged,
    test_a_deleted_file_is_out_of_every_store,
    test_a_file_is_uploaded_indexed_read_and_taken_out,
    test_a_store_from_making_to_deleting,
    test_a_store_that_a_release_answers_from_is_not_deleted,
    test_an_archive_is_one_file_whose_members_are_found,
    test_an_expired_store_is_not_searched_and_comes_back_when_it_is_modified,
    test_an_operators_document_has_its_own_id,
    test_an_uploaded_document_is_what_a_chat_is_answered_from,
    test_one_creation_sent_by_several_at_once_is_one_store,
    test_search_in_two_languages_with_filters,
    test_stores_are_paged_both_ways_and_an_operators_is_among_them,
    test_the_same_creation_twice_makes_one_store_and_one_batch,
)


@pytest.fixture(scope="module")
def library(library_on_postgresql: House) -> House:
    assert library_on_postgresql.catalog.engine.dialect.name == "postgresql"
    return library_on_postgresql
