"""The node under an external lifecycle manager."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from .conftest import make_model
from .harness import Rig, picture, set_parameter, start_rig, values


class Manager:
    """Takes a node through its lifecycle, as a supervisor of the vehicle would."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def change(self, *transitions: int) -> bool:
        """Whether every one of these transitions succeeded."""
        requests = [ChangeState.Request(transition=Transition(id=transition)) for transition in transitions]
        return all(self.rig.client.call(ChangeState, "anomaly_node/change_state", r).success for r in requests)

    def start(self) -> bool:
        return self.change(Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)

    def end(self) -> bool:
        return self.change(Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)

    def state(self) -> int:
        return self.rig.client.call(GetState, "anomaly_node/get_state", GetState.Request()).current_state.id

    def answer_one(self) -> None:
        camera, labels = self.rig.client.camera(), self.rig.client.listen("labels")
        camera.wait_for_subscriber()
        labels.wait_for(camera.send(picture()))
        camera.close()
        labels.close()

    def memory(self) -> float:
        """Resident megabytes that are the process's own."""
        lines = Path(f"/proc/{self.rig.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty megabytes of weights: many times what an allocator holds now and then."""
    return make_model(tmp_path_factory.mktemp("models") / "large.safetensors", decoder_channels=1536)


@pytest.fixture(scope="module")
def manager(large_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """Of an unconfigured node; every test leaves it unconfigured."""
    parameters = {"model": large_model, "autostart": "false", "input_reliability": "reliable"}
    with start_rig("/managed", tmp_path_factory.mktemp("managed") / "log", parameters) as rig:
        yield Manager(rig)


def test_an_external_manager(manager: Manager) -> None:
    client = manager.rig.client
    assert manager.state() == State.PRIMARY_STATE_UNCONFIGURED
    client.status("model", lambda s: "unconfigured" in s.message)
    assert not manager.change(Transition.TRANSITION_ACTIVATE), "there is nothing to activate yet"
    assert manager.change(Transition.TRANSITION_CONFIGURE) and manager.state() == State.PRIMARY_STATE_INACTIVE
    camera = client.camera()
    time.sleep(0.5)
    assert camera.publisher.get_subscription_count() == 0, "an inactive node receives nothing"
    camera.close()
    assert manager.change(Transition.TRANSITION_ACTIVATE) and manager.state() == State.PRIMARY_STATE_ACTIVE
    manager.answer_one()
    assert manager.change(Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE)
    manager.answer_one()
    assert manager.end() and manager.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert client.node.count_publishers("/managed/labels") == 0


def test_a_reliability_that_no_camera_offers(manager: Manager) -> None:
    assert manager.start()
    camera = manager.rig.client.camera(reliability="best_effort")
    status = manager.rig.client.status("/managed/image", lambda s: "input_reliability" in s.message)
    assert status.level == DiagnosticStatus.ERROR and values(status)["reliability"] == "reliable"
    camera.close()
    assert manager.end()


def test_cleaning_up_frees_the_memory(manager: Manager, large_model: Path) -> None:
    megabytes = []
    for _ in range(4):
        assert manager.start()
        manager.answer_one()
        full = manager.memory()
        assert manager.end()
        megabytes.append((full, manager.memory()))
    # An allocator's arenas keep some ten megabytes now and then; a model that is not dropped is three sizes in the end.
    size = large_model.stat().st_size / 2**20
    assert all(full - after > 0.5 * size for full, after in megabytes), megabytes
    assert megabytes[-1][1] - megabytes[0][1] < size, megabytes


def test_what_cannot_be_configured_is_corrected_and_tried_again(manager: Manager) -> None:
    assert set_parameter(manager.rig.client, "score_min", 50.0)[0], "what the model says is not known yet"
    assert not manager.change(Transition.TRANSITION_CONFIGURE)
    manager.rig.client.status("model", lambda s: "score_min (50) must be below score_max (-2)" in s.message)
    assert set_parameter(manager.rig.client, "score_min", "auto")[0]
    assert manager.start()
    manager.answer_one()
    assert manager.end()


def test_a_manager_that_ends_it(manager: Manager) -> None:
    """Runs last of those with this node."""
    assert manager.start() and manager.change(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert manager.rig.process.exit_code() == 0
    output = manager.rig.process.output()
    assert "Traceback" not in output and "[FATAL]" not in output


def test_a_model_that_a_managed_node_cannot_load(tmp_path: Path) -> None:
    with start_rig("/modelless", tmp_path / "log", {"model": "nowhere.safetensors", "autostart": "false"}) as rig:
        manager = Manager(rig)
        assert not manager.change(Transition.TRANSITION_CONFIGURE)
        assert manager.state() == State.PRIMARY_STATE_UNCONFIGURED
        status = rig.client.status("model", lambda s: s.level == DiagnosticStatus.ERROR)
        assert "There is no model 'nowhere.safetensors'" in status.message
        assert rig.process.running and "There is no model 'nowhere.safetensors'" in rig.process.output()
