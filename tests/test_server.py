"""`radglint serve` from outside: studies in, questions, results in every form, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

import radglint
from dicom_files import write_ct_series, write_radiograph
from server_process import KEY, ServerProcess, nifti, png


@pytest.fixture(scope="module")
def radiograph(server: ServerProcess) -> dict:
    return server.upload(("Meier^Anna.png", png()))


@pytest.fixture(scope="module")
def series(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A CT as single DICOM files; the phantom of `dicom_files`, larger."""
    hu = np.full((6, 40, 48), -1000, dtype=np.int16)
    hu[:, 8:32, 8:40] = 40
    hu[:, 12:28, 12:20] = -850
    spacing = {"PixelSpacing": [8.0, 7.0], "SliceThickness": 8.0, "FrameOfReferenceUID": "1.2.3.4.9"}
    paths = write_ct_series(tmp_path_factory.mktemp("ct"), hu, step=(0.0, 0.0, 8.0), **spacing)
    return server.upload(*((path.name, path.read_bytes()) for path in paths))


def volume(server: ServerProcess, path: str) -> nib.Nifti1Image:
    answer = server.client.get(path)
    assert answer.status_code == 200, answer.text
    return nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))


def problem(answer: httpx.Response, status: int, kind: str) -> str:
    """Checks an error document; returns its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail"}
    assert (document["status"], document["type"]) == (status, f"urn:radglint:{kind}")
    return document["detail"]


def test_an_answer_is_that_of_the_command_line(server: ServerProcess, radiograph: dict, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    queries = ["pleural effusion", "no pneumothorax", "fractured femur"]
    expected = radglint.load("nano", device="cpu").ask(tmp_path / "a.png", queries)
    job = server.ask(radiograph["id"], *queries)
    assert job["state"] == "done"
    assert job["model"] == {"name": "nano", "fingerprint": expected.model_fingerprint}
    for told, finding in zip(job["findings"], expected, strict=True):
        own = finding.to_dict()
        assert {k: told[k] for k in ("query", "assertion", "present", "boxes")} == {
            k: json.loads(json.dumps(own[k])) for k in ("query", "assertion", "present", "boxes")
        }
        assert told["probability"] == pytest.approx(finding.probability, abs=1e-5)
        assert (told["decision"], told["verdict"]) == (finding.decision, finding.verdict)
    assert job["findings"][2]["decision"] == "out of scope"


def test_maps_and_masks_lie_on_the_displayed_radiograph(server: ServerProcess, radiograph: dict) -> None:
    shown = volume(server, f"/api/v1/studies/{radiograph['id']}/volume.nii.gz")
    assert shown.shape == (96, 96, 1)
    assert nib.aff2axcodes(shown.affine) == ("L", "I", "P")  # upright in a coronal view
    pixels = np.asarray(Image.open(io.BytesIO(png()))).astype(float)
    brightness = np.asarray(shown.dataobj)[:, :, 0].T
    assert np.corrcoef(pixels.ravel(), brightness.ravel())[0, 1] > 0.99
    job = server.ask(radiograph["id"], "interstitial pattern", "consolidation", threshold=0.01)
    for finding in job["findings"]:
        likely = volume(server, finding["links"]["probability"])
        mask = volume(server, finding["links"]["mask_nifti"])
        assert likely.get_data_dtype() == mask.get_data_dtype() == np.uint8
        assert np.allclose(likely.affine, shown.affine)
        assert mask.shape == likely.shape == shown.shape
        picture = np.asarray(Image.open(io.BytesIO(server.client.get(finding["links"]["mask_png"]).content)))
        assert np.array_equal(picture > 0, np.asarray(mask.dataobj)[:, :, 0].T > 0)
        assert (picture > 0).sum() == finding["area_px"]
        inside = np.asarray(likely.dataobj)[np.asarray(mask.dataobj) > 0]
        assert finding["area_px"] == 0 or inside.min() >= round(0.01 * 255)
    assert any(finding["area_px"] for finding in job["findings"])
    labels = np.asarray(volume(server, f"/api/v1/jobs/{job['id']}/labels.nii.gz").dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2}


def test_a_nifti_ct_keeps_its_geometry(server: ServerProcess) -> None:
    content = nifti()
    study = server.upload(("ct.nii.gz", gzip.compress(content)))
    assert study["image"]["modality"] == "CT"
    source, shown = nib.Nifti1Image.from_bytes(content), volume(server, f"/api/v1/studies/{study['id']}/volume.nii.gz")
    assert np.array_equal(np.asarray(source.dataobj), np.asarray(shown.dataobj))
    assert np.allclose(source.affine, shown.affine)
    job = server.ask(study["id"], "emphysema", threshold=0.02)
    likely = volume(server, job["findings"][0]["links"]["probability"])
    assert likely.shape == source.shape
    assert np.allclose(likely.affine, source.affine)
    detail = problem(server.client.get(f"/api/v1/jobs/{job['id']}/findings/0/mask.png"), 409, "no-such-result")
    assert "mask.nii.gz" in detail
    problem(server.client.get(f"/api/v1/jobs/{job['id']}/seg.dcm"), 409, "no-such-result")
    problem(server.client.get(f"/api/v1/jobs/{job['id']}/findings/7/overlay.png"), 404, "not-found")


def test_dicom_results_belong_together(server: ServerProcess, series: dict) -> None:
    assert series["image"]["is_dicom"], series
    job = server.ask(series["id"], "emphysema", "nodule", threshold=0.02)
    base = f"/api/v1/jobs/{job['id']}"
    report = server.client.get(f"{base}/sr.dcm")
    assert report.headers["content-type"] == "application/dicom"
    seg = pydicom.dcmread(io.BytesIO(server.client.get(f"{base}/seg.dcm").content))
    told = pydicom.dcmread(io.BytesIO(report.content))
    assert [str(s.SegmentLabel) for s in seg.SegmentSequence] == ["emphysema", "nodule"]
    referred = json.dumps(told.to_json_dict())
    assert seg.SOPInstanceUID in referred or not seg.get("NumberOfFrames", 0)
    archive = zipfile.ZipFile(io.BytesIO(server.client.get(f"{base}/all.zip").content))
    names = archive.namelist()
    wanted = {"findings.json", "index.html", "findings_seg.dcm", "findings_sr.dcm", "01_emphysema_mask.nii.gz"}
    assert wanted <= set(names)
    again = pydicom.dcmread(io.BytesIO(archive.read("findings_seg.dcm")))
    assert again.SOPInstanceUID == seg.SOPInstanceUID  # the same object, however it is fetched
    assert "/source" not in archive.read("findings.json").decode()


def test_pages_and_pictures(server: ServerProcess, radiograph: dict) -> None:
    job = server.ask(radiograph["id"], "nodule", "mass")
    page = server.client.get(f"/api/v1/jobs/{job['id']}/report.html")
    assert page.headers["content-type"].startswith("text/html")
    assert "sandbox" in page.headers["content-security-policy"]
    assert "nodule" in page.text
    picture = server.client.get(job["findings"][0]["links"]["overlay"])
    assert Image.open(io.BytesIO(picture.content)).width > 100
    document = server.client.get(f"/api/v1/jobs/{job['id']}/report.json").json()
    assert [f["query"] for f in document["findings"]] == ["nodule", "mass"]
    assert document["image"]["path"] == "Meier^Anna.png"


def test_events_end_with_the_answer(server: ServerProcess) -> None:
    answer = server.client.post("/api/v1/studies", files={"file": ("a.png", png(seed=3))})
    study_id = answer.json()["id"]
    job = server.client.post("/api/v1/jobs", json={"study_id": study_id, "queries": ["nodule"]}).json()
    assert job["state"] == "queued"
    with server.client.stream("GET", f"/api/v1/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [t["state"] for t in told][-1] == "done"
    assert told[-1]["findings"][0]["query"] == "nodule"
    progress = [t["progress"] for t in told]
    assert progress == sorted(progress)
    with server.client.stream("GET", f"/api/v1/studies/{study_id}/events") as stream:
        assert '"ready"' in "".join(stream.iter_text())


def test_waiting_jobs_on_a_study_are_answered_together(server: ServerProcess) -> None:
    study_id = server.client.post("/api/v1/studies", files={"file": ("b.png", png(seed=4))}).json()["id"]
    before = metric(server, "radglint_queries_at_once_count")
    asked = [
        server.client.post("/api/v1/jobs", json={"study_id": study_id, "queries": [f"nodule of {k} mm"]}).json()["id"]
        for k in range(5, 11)
    ]
    ended = [server.wait(f"/api/v1/jobs/{job_id}", ("done", "failed")) for job_id in asked]
    assert [job["state"] for job in ended] == ["done"] * 6
    assert [job["findings"][0]["query"] for job in ended] == [f"nodule of {k} mm" for k in range(5, 11)]
    assert metric(server, "radglint_queries_at_once_count") - before <= 3


def metric(server: ServerProcess, name: str) -> float:
    text = server.client.get("/metrics").text
    return float(re.findall(rf"^{name}(?:{{.*}})? ([\d.e+]+)$", text, re.MULTILINE)[0])


def test_cancel_and_delete(server: ServerProcess) -> None:
    study_id = server.client.post("/api/v1/studies", files={"file": ("c.png", png(seed=5))}).json()["id"]
    ids = [
        server.client.post("/api/v1/jobs", json={"study_id": study_id, "queries": ["mass"]}).json()["id"] for _ in "ab"
    ]
    cancelled = server.client.post(f"/api/v1/jobs/{ids[0]}/cancel")
    assert cancelled.json()["state"] == "cancelled"
    problem(server.client.get(f"/api/v1/jobs/{ids[0]}/report.json"), 409, "not-done")
    assert server.wait(f"/api/v1/jobs/{ids[1]}", ("done", "failed"))["state"] == "done"
    assert server.client.post(f"/api/v1/jobs/{ids[1]}/cancel").json()["state"] == "done"
    listed = server.client.get("/api/v1/jobs", params={"study_id": study_id}).json()["jobs"]
    assert sorted(job["state"] for job in listed) == ["cancelled", "done"]
    assert server.client.delete(f"/api/v1/jobs/{ids[1]}").status_code == 204
    problem(server.client.get(f"/api/v1/jobs/{ids[1]}"), 404, "not-found")
    assert server.client.delete(f"/api/v1/studies/{study_id}").status_code == 204
    problem(server.client.get(f"/api/v1/studies/{study_id}"), 404, "not-found")
    problem(server.client.get(f"/api/v1/jobs/{ids[0]}"), 404, "not-found")


def test_broken_files_fail_with_a_reason_and_without_paths(server: ServerProcess, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.dcm", bytes(80 * 2**20))
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("../../etc/passwd", b"x")
    for name, content, words in (
        ("text.txt", b"not an image at all", "text"),
        ("../../../etc/cron.d/x", png()[:200], ""),
        ("bomb.zip", bomb.getvalue(), "zip bomb"),
        ("evil.zip", evil.getvalue(), "outside the archive"),
        ("empty", b"", "empty"),
    ):
        study = server.upload((name, content))
        assert study["state"] == "failed", name
        assert words in study["problem"]
        assert "/tmp" not in study["problem"]
        assert "/source" not in study["problem"]
        asked = server.client.post("/api/v1/jobs", json={"study_id": study["id"], "queries": ["nodule"]})
        problem(asked, 409, "study-failed")
        problem(server.client.get(f"/api/v1/studies/{study['id']}/volume.nii.gz"), 409, "not-ready")
        server.client.delete(f"/api/v1/studies/{study['id']}")


def test_sizes_and_forms_are_bounded(server: ServerProcess) -> None:
    post = server.client.post
    problem(post("/api/v1/studies", files={"file": ("a", bytes(9 * 2**20))}), 413, "too-large")
    problem(post("/api/v1/studies", files=[("file", (f"{k}", b"x")) for k in range(41)]), 413, "too-many-files")
    problem(post("/api/v1/studies", files={"other": ("a", b"x")}), 422, "no-file")
    problem(post("/api/v1/studies", content=b"x"), 422, "no-form")
    garbage = {"content-type": "multipart/form-data; boundary=zz"}
    problem(post("/api/v1/studies", content=b"garbage", headers=garbage), 400, "bad-form")
    problem(post("/api/v1/jobs", content=b" " * (2**20 + 1)), 413, "too-large")

    def endless():
        for _ in range(40):
            yield bytes(2**16)

    problem(post("/api/v1/jobs", content=endless(), headers={"content-type": "application/json"}), 413, "too-large")


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'{"study_id": "x", "queries": ["nodule"]}', b'{"study_id": "%s", "queries": []}' % (b"0" * 24),
        b'{"study_id": "%s", "queries": ["\\ud800 nodule"]}' % (b"0" * 24),
        b'{"study_id": "%s", "queries": ["nodule"], "threshold": 2}' % (b"0" * 24),
        b'{"study_id": "%s", "queries": ["nodule"], "more": 1}' % (b"0" * 24), b"[" * 5000, b'{"study_id": "\xff"}',
    ],
)  # fmt: skip
def test_a_question_of_the_wrong_form_is_refused(server: ServerProcess, body: bytes) -> None:
    answer = server.client.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    problem(answer, answer.status_code, answer.json()["type"].rpartition(":")[2])


def test_keys(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as nobody:
        assert nobody.get("/health").json() == {"status": "ok"}
        for headers in ({}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": "ä" * 20}, {"Authorization": f"Basic {KEY}"}):
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            for path in ("/api/v1/studies", "/metrics", "/info/", "/api/v1/nothing"):
                problem(nobody.get(path, headers=raw), 401, "no-key")
        assert nobody.get("/info/", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        upload = nobody.post("/api/v1/studies", files={"file": ("a.png", png())})
        problem(upload, 401, "no-key")


def test_other_origins_are_refused(server: ServerProcess) -> None:
    answer = server.client.get("/api/v1/studies", headers={"Origin": "https://evil.example"})
    problem(answer, 403, "wrong-origin")
    assert "access-control-allow-origin" not in answer.headers
    assert server.client.get("/api/v1/studies", headers={"Origin": server.url}).status_code == 200


def test_headers_and_lists(server: ServerProcess, radiograph: dict) -> None:
    answer = server.client.get("/api/v1/studies", params={"limit": 500})
    assert radiograph["id"] in [study["id"] for study in answer.json()["studies"]]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    problem(server.client.get("/api/v1/studies?limit=0"), 422, "invalid")
    problem(server.client.get("/api/v1/none"), 404, "not-found")
    problem(server.client.put("/api/v1/studies"), 405, "method-not-allowed")
    facts = server.client.get("/api/v1/model").json()
    assert "nodule" in facts["findings"]["CT"]
    assert facts["dicomweb"] is False
    problem(
        server.client.post("/api/v1/studies/dicomweb", json={"study_uid": "1.2", "series_uid": "1.3"}), 409, "no-pacs"
    )


def test_logs_and_metrics_name_no_patient(server: ServerProcess, tmp_path: Path) -> None:
    path = write_radiograph(
        tmp_path / "x.dcm", np.full((40, 40), 5), PatientName="Secret^Name", PatientID="Secret^Name"
    )
    study = server.upload(("Secret^Name.dcm", path.read_bytes()))
    server.client.get("/api/v1/studies/Secret^Name?name=Secret^Name")
    server.client.get("/patients/Secret^Name")
    server.client.post("/api/v1/jobs", json={"study_id": study["id"], "queries": ["nodule of Secret^Name"]})
    text = "".join(server.lines) + server.client.get("/metrics").text
    assert "POST /api/v1/studies 202" in text
    assert "Secret" not in text
    assert study["id"] not in text


def test_many_at_once(server: ServerProcess, radiograph: dict) -> None:
    def ask(k: int) -> str:
        return server.ask(radiograph["id"], f"nodule number {k}")["findings"][0]["query"]

    with ThreadPoolExecutor(16) as clients:
        assert list(clients.map(ask, range(48))) == [f"nodule number {k}" for k in range(48)]
