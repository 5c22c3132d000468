"""The client of the API server, over real HTTP: what it asks, what it makes of the answers, and of none."""

from __future__ import annotations

import os

import pytest

from orchestrator.cluster.kube import api as paths
from orchestrator.cluster.kube.api import ApiError, Change, KubeApi
from tests.integration import kubernetes_claims
from tests.integration.played_kubernetes import PlayedKubernetes
from tests.waiting import wait_until

PODS = paths.pods("understudy")
ONE = paths.pods("understudy", "moe-node-1")
POD = {"metadata": {"name": "moe-node-1", "labels": {"understudy.dev/job": "moe"}}, "spec": {}}


@pytest.fixture
def api(kubernetes: PlayedKubernetes) -> KubeApi:
    """The real client, by the context of a kubeconfig with a token."""
    del kubernetes
    return KubeApi("played")


def test_the_played_server_is_as_a_real_one_is(api: KubeApi) -> None:
    """The same claims are checked of a real one by `make e2e`."""
    kubernetes_claims.check(api, "understudy")


def test_a_real_server_is_as_it_is_taken_to_be() -> None:
    """Where the machine has one: UNDERSTUDY_TEST_NAMESPACE names a namespace of the kubeconfig's cluster to play in."""
    namespace = os.environ.get("UNDERSTUDY_TEST_NAMESPACE")
    if not namespace:
        pytest.skip("UNDERSTUDY_TEST_NAMESPACE names no namespace of a real cluster")
    kubernetes_claims.check(KubeApi(), namespace)


def test_objects_are_made_read_changed_and_deleted(kubernetes: PlayedKubernetes, api: KubeApi) -> None:
    """Each call is one request, with the token of the kubeconfig."""
    made = api.create(PODS, POD)
    assert api.get(ONE)["metadata"]["uid"] == made["metadata"]["uid"]
    api.patch(ONE, {"metadata": {"labels": {"understudy.dev/job": None, "more": "words"}}})
    assert api.get(ONE)["metadata"]["labels"] == {"more": "words"}
    api.delete(ONE)
    assert kubernetes.below(PODS) == {}


def test_an_error_has_the_code_and_the_words_of_the_server(api: KubeApi) -> None:
    """And says what kind of trouble it is."""
    with pytest.raises(ApiError, match="answered 404") as absent:
        api.get(ONE)
    api.create(PODS, POD)
    with pytest.raises(ApiError, match="already exists") as conflict:
        api.create(PODS, POD)
    with pytest.raises(ApiError, match="precondition") as other:
        api.delete(ONE, uid="of-another-pod")
    assert absent.value.absent and conflict.value.conflict and other.value.conflict


def test_a_change_of_what_has_changed_meanwhile_is_refused(
    kubernetes: PlayedKubernetes, api: KubeApi
) -> None:
    """Where the patch names the version that it was made for."""
    version = api.create(PODS, POD)["metadata"]["resourceVersion"]
    kubernetes.write(ONE, {"spec": {"nodeName": "m-1"}})
    with pytest.raises(ApiError) as refused:
        api.patch(ONE, {"metadata": {"resourceVersion": version, "labels": {"a": "b"}}})
    assert refused.value.conflict


def test_nobody_who_answers_is_an_error_without_a_code(kubernetes: PlayedKubernetes, api: KubeApi) -> None:
    """Nothing is tried again here."""
    kubernetes.away = True
    with pytest.raises(ApiError, match="does not answer") as nobody:
        api.get(ONE)
    assert nobody.value.status == 0


def test_a_watch_tells_changes_from_a_version_on(kubernetes: PlayedKubernetes, api: KubeApi) -> None:
    """Until the server ends it, with a bookmark of how far it came."""
    api.create(PODS, POD)
    since = api.get(PODS)["metadata"]["resourceVersion"]
    changes = api.watch(PODS, {"labelSelector": "understudy.dev/job=moe", "resourceVersion": since})
    kubernetes.write(paths.pods("understudy", "somebody-elses"), {})
    kubernetes.write(ONE, {"status": {"phase": "Running"}})
    assert _told(next(changes)) == ("MODIFIED", "moe-node-1")
    kubernetes.remove(ONE)
    assert _told(next(changes)) == ("DELETED", "moe-node-1")
    kubernetes.end_watches()
    assert [each.kind for each in changes] == ["BOOKMARK"]
    wait_until(lambda: kubernetes.watches == 0, within_seconds=5, what="the end of the watch")


def test_a_watch_from_too_far_back_says_so(kubernetes: PlayedKubernetes, api: KubeApi) -> None:
    """One must list again."""
    kubernetes.forget()
    with pytest.raises(ApiError) as refused:
        list(api.watch(PODS, {"resourceVersion": "1"}))
    assert refused.value.expired


def test_a_watch_is_refused_like_any_other_question(kubernetes: PlayedKubernetes) -> None:
    """A token that is not let in."""
    api = KubeApi("played")
    api._client.configuration.api_key.clear()
    with pytest.raises(ApiError, match="401"):
        next(api.watch(PODS, {}))
    with pytest.raises(ApiError, match="Unauthorized"):
        api.get(PODS)
    assert kubernetes.watches == 0


def test_a_context_that_is_not_there_is_no_cluster(kubernetes: PlayedKubernetes) -> None:
    """In words, and without a call."""
    with pytest.raises(ApiError, match="no cluster"):
        KubeApi("another")
    assert kubernetes.asked == []


def _told(change: Change) -> tuple[str, str]:
    return change.kind, change.object["metadata"]["name"]
