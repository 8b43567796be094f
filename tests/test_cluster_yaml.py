"""Cluster files against Ray's own schema and preparation, and the Kubernetes manifest against the project."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = ("cluster.yaml", "cluster-onprem.yaml")
START = ("head_start_ray_commands", "worker_start_ray_commands")


def read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return data


def pinned_ray() -> str:
    (line,) = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x.startswith("ray==")]
    return line.removeprefix("ray==")


def ray_start(config: dict[str, Any], key: str) -> str:
    (command,) = [c for c in config[key] if "ray start" in c]
    return str(command)


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


class TestClusterFiles:
    def test_rays_schema_takes_it(self, config: dict[str, Any]) -> None:
        import ray.autoscaler

        schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
        jsonschema.validate(config, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**config, "min_workerz": 1}, schema)

    def test_ray_prepares_and_validates_it_offline(self, config: dict[str, Any]) -> None:
        from ray.autoscaler._private.util import prepare_config, validate_config

        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
        head = prepared["available_node_types"][prepared["head_node_type"]]
        workers = [t for t in prepared["available_node_types"].values() if t["max_workers"]]
        assert workers
        assert all(t["max_workers"] <= prepared["max_workers"] for t in workers)
        assert head["resources"].get("GPU", 0) == 0
        # The commands are the file's own, not defaults of Ray's.
        for key in START:
            assert prepared[key] == config[key]

    def test_authentication_is_said_and_the_dashboard_is_not_public(self, config: dict[str, Any]) -> None:
        for key in START:
            assert "RAY_AUTH_MODE=token " in ray_start(config, key)
        assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])
        assert "--dashboard-host=127.0.0.1 " in ray_start(config, START[0])
        assert "security_group" not in config["provider"]

    def test_nodes_get_the_project_and_its_pins(self, config: dict[str, Any]) -> None:
        assert "." in config["file_mounts"].values()
        assert {".git", ".venv", "/runs"} <= set(config["rsync_exclude"])
        assert config["rsync_filter"] == [".gitignore"]
        text = " ".join(config["setup_commands"])
        # The Makefile installs by constraints.txt, too.
        assert "constraints.txt" in text or "make -C" in text


def test_aws_pins_ray_and_scales_from_none() -> None:
    config = read("cluster.yaml")
    assert config["docker"]["image"].split(":")[1].split("-")[0] == pinned_ray()
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu"]["resources"]["GPU"] >= 1
    assert types["gpu"]["min_workers"] == 0
    assert config["idle_timeout_minutes"] > 0


def test_on_premise_keeps_every_machine() -> None:
    from ray.autoscaler._private.util import prepare_config

    config = read("cluster-onprem.yaml")
    (node_type,) = prepare_config(config)["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"])


class TestKubernetes:
    @pytest.fixture
    def documents(self) -> dict[str, dict[str, Any]]:
        text = (ROOT / "kubernetes" / "rayjob.yaml").read_text(encoding="utf-8")
        return {document["kind"]: document for document in yaml.safe_load_all(text)}

    @pytest.fixture
    def job(self, documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
        assert documents["RayJob"]["apiVersion"] == "ray.io/v1"
        spec: dict[str, Any] = documents["RayJob"]["spec"]
        return spec

    @staticmethod
    def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
        cluster = job["rayClusterSpec"]
        return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]

    def test_ray_is_the_pinned_one(self, job: dict[str, Any]) -> None:
        assert job["rayClusterSpec"]["rayVersion"] == pinned_ray()
        base = (ROOT / "kubernetes" / "Dockerfile").read_text()
        assert f"FROM rayproject/ray:{pinned_ray()}-py311-gpu\n" in base
        for group in self.groups(job):
            for container in group["template"]["spec"]["containers"]:
                assert container["image"].endswith(f":ray-{pinned_ray()}")

    def test_the_entrypoint_is_a_job_that_can_begin(self, job: dict[str, Any]) -> None:
        program, script, flag, config, *overrides = shlex.split(job["entrypoint"])
        assert (program, flag) == ("python", "--config")
        for path in (script, config):
            assert (ROOT / Path(path).relative_to("/opt/ensemw2s")).is_file()
        (runs_dir,) = [o.removeprefix("runs_dir=") for o in overrides if o.startswith("runs_dir=")]
        assert Path(runs_dir).is_absolute()

    def test_every_pod_mounts_the_shared_folder(
        self, job: dict[str, Any], documents: dict[str, dict[str, Any]]
    ) -> None:
        claim = documents["PersistentVolumeClaim"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for group in self.groups(job):
            pod = group["template"]["spec"]
            claims = {
                v["persistentVolumeClaim"]["claimName"]: v["name"]
                for v in pod["volumes"]
                if "persistentVolumeClaim" in v
            }
            name = claims[claim["metadata"]["name"]]
            (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == name]
            assert f"runs_dir={mount['mountPath']}/" in job["entrypoint"]

    def test_gpus_are_on_workers_and_everybody_needs_the_token(self, job: dict[str, Any]) -> None:
        assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
        head, *workers = self.groups(job)
        assert head["rayStartParams"]["num-gpus"] == "0"
        assert head["serviceType"] == "ClusterIP"
        limits = [w["template"]["spec"]["containers"][0]["resources"]["limits"] for w in workers]
        assert all(int(limit["nvidia.com/gpu"]) >= 1 for limit in limits)


def test_the_documentation_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:ray_jobs|kubernetes|configs)/[\w.]+|cluster[\w-]*\.yaml", text))
    assert {"ray_jobs/boost.py", "cluster.yaml", "kubernetes/rayjob.yaml"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    assert f"ray-{pinned_ray()}" in text
