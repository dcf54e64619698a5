"""The MONAI Label end points, asked with the very bytes that the plug-ins of 3D Slicer and OHIF send."""

from __future__ import annotations

import email
import gzip
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest

from dicom_files import write_ct_series
from orthanc import USER, Orthanc, orthanc, orthanc_of_session  # noqa: F401 (fixtures)
from radglint.server.monai_answer import label_names
from radglint.server.monai_images import next_image
from radglint.server.nrrd import nrrd_bytes, renumbered_nifti, rewritten
from server_process import KEY, ServerProcess, nifti, png

KNOWN = ["nodule", "mass", "consolidation", "pleural effusion", "calcified nodule"]
SLICER_LIMIT = "----------lImIt_of_THE_fIle_eW_$"
OHIF_LIMIT = "----WebKitFormBoundaryIknArG0PiGSDO1XB"
SERIES = {"PixelSpacing": [8.0, 7.0], "SliceThickness": 8.0, "FrameOfReferenceUID": "1.2.3.4.9"}


def small_ct() -> np.ndarray:
    hu = np.full((6, 40, 48), -1000, dtype=np.int16)
    hu[:, 8:32, 8:40] = 40
    hu[:, 12:28, 12:20] = -850
    return hu


class Answer:
    """What came, by the standard library's client.

    Args:
        url: of the server.
        method: of the request.
        path: with its query.
        body: of the request.
        headers: of the request.
    """

    def __init__(self, url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=300)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            self.status, self.content = answer.status, answer.read()
            self.kind = answer.getheader("content-type") or ""
        finally:
            connection.close()

    def json(self, status: int = 200) -> Any:
        assert self.status == status, self.content[:500]
        return json.loads(self.content)

    def parts(self) -> tuple[dict[str, Any], str, bytes]:
        """Parameters, file name and file of a form."""
        assert self.status == 200, self.content[:500]
        message = email.message_from_bytes(f"content-type: {self.kind}\r\n\r\n".encode() + self.content)
        params, image = message.get_payload()  # type: ignore[misc]
        assert "filename" not in str(params["content-disposition"])
        return json.loads(params.get_payload(decode=True)), image.get_filename(), image.get_payload(decode=True)


def slicer_form(params: dict[str, Any], **files: tuple[str, bytes]) -> dict[str, Any]:
    """Body and headers as the plug-in for 3D Slicer writes them, with a blank line at the end of the form."""
    lines = [f"--{SLICER_LIMIT}", 'Content-Disposition: form-data; name="params"', "", json.dumps(params)]
    body = "\r\n".join([*lines, ""]).encode()
    for field, (name, content) in files.items():
        disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
        kind = "application/gzip" if name.endswith(".gz") else "application/octet-stream"
        body += "\r\n".join([f"--{SLICER_LIMIT}", disposition, f"Content-Type: {kind}", "", ""]).encode()
        body += content + b"\r\n"
    body += f"--{SLICER_LIMIT}--\r\n\r\n".encode()
    return {"body": body, "content_type": f"multipart/form-data; boundary={SLICER_LIMIT}"}


def slicer_infer(url: str, image: str, session: str = "", **config: Any) -> Answer:
    params = {"label_prompt": "", "threshold": "", **config}
    params |= {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
    path = f"/infer/nano-ct?image={image}" + (f"&session_id={session}" if session else "")
    return Answer(url, "POST", path, **slicer_form(params), Authorization=f"bearer {KEY}")


def ohif_infer(url: str, series: str, **options: Any) -> Answer:
    params = options | {
        "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False,
    }  # fmt: skip
    text = json.dumps(params, separators=(",", ":"))
    body = f'--{OHIF_LIMIT}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{text}\r\n--{OHIF_LIMIT}--\r\n'
    kind, wanted = f"multipart/form-data; boundary={OHIF_LIMIT}", "application/json,multipart/form-data"
    path = f"/infer/nano-ct?image={series}&output=image"
    return Answer(url, "POST", path, body.encode(), Content_Type=kind, Accept=wanted, X_API_Key=KEY, Origin=url)


def read_nrrd(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Array, first index the column, and affine to RAS+ millimetres, of what 3D Slicer and OHIF take as NRRD."""
    head, _, data = content.partition(b"\n\n")
    lines = head.decode("ascii").splitlines()
    assert lines[0] == "NRRD0004"
    fields = dict(line.split(": ") for line in lines[1:])
    assert (fields["dimension"], fields["space"], fields["endian"]) == ("3", "left-posterior-superior", "little")
    data = gzip.decompress(data) if fields["encoding"] == "gzip" else data
    shape = [int(size) for size in fields["sizes"].split()]
    vectors = [*fields["space directions"].split(), fields["space origin"]]
    lps = np.array([[float(value) for value in vector.strip("()").split(",")] for vector in vectors]).T
    affine = np.vstack([lps * [[-1], [-1], [1]], [0, 0, 0, 1]])
    return np.frombuffer(data, fields["type"]).reshape(shape, order="F"), affine


def test_a_label_volume_as_nrrd() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
    affine = np.array([[0.0, -2, 0.5, 7], [3, 0, 0, -8], [0, 0.25, 4, 9], [0, 0, 0, 1]])
    packed = nrrd_bytes(array, affine)
    for content in (packed, rewritten(packed, {}, "uint8", is_packed=False)):
        found, where = read_nrrd(content)
        assert np.array_equal(found, array)
        assert np.allclose(where, affine)
    wide, _ = read_nrrd(rewritten(packed, {1: 9, 2: 255}, "uint16", is_packed=False))
    assert wide.dtype == np.uint16
    assert np.array_equal(wide, np.array([0, 9, 255], dtype=np.uint16)[array])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_other_numbers_in_a_nifti(kind: type[nib.Nifti1Image]) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
    packed = gzip.compress(kind(array, np.diag([2.0, 3, 4, 1])).to_bytes())
    assert renumbered_nifti(packed, {1: 1, 2: 2}) == packed
    found = kind.from_bytes(gzip.decompress(renumbered_nifti(packed, {1: 2, 2: 7})))
    assert np.array_equal(np.asarray(found.dataobj), np.array([0, 2, 7], dtype=np.uint8)[array])
    assert np.allclose(found.affine, np.diag([2.0, 3, 4, 1]))


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        (["mass", "nodule"], ["mass", "nodule"]),
        (["small left Pleural Effusion", "masses"], ["pleural effusion", "mass"]),
        (["calcified nodules of the left lung"], ["calcified nodule"]),
        (["left pleural effusion", "right pleural effusion"], ["left pleural effusion", "right pleural effusion"]),
        (["pleural effusion", "small pleural effusion"], ["pleural effusion", "small pleural effusion"]),
        (["mass or consolidation", "massive bleeding"], ["mass or consolidation", "massive bleeding"]),
    ],
)
def test_a_query_goes_by_the_one_known_finding_that_it_names(queries: list[str], names: list[str]) -> None:
    assert label_names(queries, KNOWN) == names


def test_what_nobody_asked_comes_first() -> None:
    rows = [{"id": "new", "state": "queued"}, {"id": "asked", "state": "ready"}, {"id": "old", "state": "ready"}]
    assert next_image(rows, {"asked"}) == rows[2]
    assert next_image(rows, {"asked", "old"}) == rows[1]
    assert next_image(rows[:1], set()) is None


def test_slicer_logs_in_with_a_key(server: ServerProcess) -> None:
    assert Answer(server.url, "GET", "/auth/").json() == {"enabled": True}
    assert Answer(server.url, "GET", "/info/").status == 401
    assert Answer(server.url, "GET", "/auth/token/valid").status == 401
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    for password, status in (("wrong-" + KEY, 401), ("", 401), (KEY, 200)):
        body = f"username=anna&password={password}&grant_type=password".encode()
        token = Answer(server.url, "POST", "/auth/token", body, **form).json(status)
    assert token == {"access_token": KEY, "token_type": "bearer"}
    assert Answer(server.url, "GET", "/auth/token/valid", Authorization=f"bearer {KEY}").status == 200


def test_info_is_what_the_plug_ins_show(server: ServerProcess) -> None:
    info = server.client.get("/info/").json()
    assert server.client.get("/info").json() == info  # as the plug-in for OHIF 2 asks
    assert {"name", "description", "version", "labels", "models", "trainers", "strategies", "scoring"} <= set(info)
    assert "config" not in info  # 3D Slicer takes that for a server that is too old
    assert list(info["models"]) == ["nano-ct", "nano-cxr"]
    for model in info["models"].values():
        assert model["type"] == "segmentation"
        assert sorted(model["labels"].values()) == list(range(1, len(model["labels"]) + 1))
        assert set(model["labels"]) <= set(info["labels"])  # 3D Slicer draws no others
        assert all(isinstance(value, str) for value in model["config"].values())  # OHIF cuts numbers to whole ones
    assert server.client.get("/train/?check_if_running=true").status_code != 200  # 200 would mean that one is running


def test_slicer_asks_a_volume_of_its_own(server: ServerProcess) -> None:
    """Session with the volume as Slicer saves it, inference, and the file that SimpleITK reads."""
    content = nifti()
    form = {"files": {"files": ("tmpab12.nii.gz", gzip.compress(content))}, "data": {"client_id": "user-xyz"}}
    session = server.client.put("/session/", **form).json()["session_id"]
    assert server.client.get(f"/session/{session}").json()["name"] == session
    told, name, file = slicer_infer(server.url, "CTChest", session, threshold="0.02").parts()
    assert name == f"{session}.nrrd"
    ct = server.client.get("/info/").json()["models"]["nano-ct"]["labels"]
    assert told["label_names"] == ct
    labels, affine = read_nrrd(file)
    source = nib.Nifti1Image.from_bytes(content)
    assert labels.shape == source.shape
    assert np.allclose(affine, source.affine, atol=1e-4)
    assert labels.max() > 0
    asked = "small left pleural effusion; emphysema; bronchial stent"
    told, _, file = slicer_infer(server.url, "CTChest", session, threshold=0.01, label_prompt=asked).parts()
    assert told["label_names"] == {"pleural effusion": 1, "emphysema": 2, "bronchial stent": 3}
    assert [finding["query"] for finding in told["findings"]] == asked.split("; ")
    assert set(np.unique(read_nrrd(file)[0])) <= {0, 1, 2, 3}
    assert server.client.delete(f"/session/{session}").status_code == 200
    assert server.client.get(f"/session/{session}").status_code == 404


def test_slicer_asks_by_the_name_it_gave(server: ServerProcess) -> None:
    sent = slicer_form({"client_id": "user-xyz"}, file=("/tmp/slicer/tmpab12.nii.gz", gzip.compress(nifti())))
    stored = Answer(server.url, "PUT", "/datastore/?image=CT+Chest%0A", **sent, X_API_Key=KEY).json()["image"]
    told, _, _ = slicer_infer(server.url, "CT+Chest%0A", label_prompt="nodule").parts()
    assert told["image"] == stored
    assert stored in server.client.get("/datastore/?output=all").json()["objects"]
    label = slicer_form({"client_id": "user-xyz"}, label=("a.nii.gz", b"x"))
    refused = Answer(server.url, "PUT", "/datastore/label?image=CT+Chest", **label, X_API_Key=KEY).json(409)
    assert "keeps no labels" in refused["detail"]
    assert server.client.delete(f"/datastore/?id={stored}").status_code == 200
    assert slicer_infer(server.url, "CT+Chest%0A").status == 404


def test_slicer_opens_a_study_of_the_server(server: ServerProcess) -> None:
    study = server.upload(("a.png", png()))
    body = json.dumps({"client_id": "user-xyz"}).encode()
    answer = Answer(server.url, "POST", "/activelearning/newest", body, Content_Type="application/json", X_API_Key=KEY)
    sample = answer.json()
    assert sample == {"id": study["id"], "name": f"{study['id']}.nii.gz"}
    image = server.client.get(f"/datastore/image?image={sample['id']}")
    shown = nib.Nifti1Image.from_bytes(gzip.decompress(image.content))
    params = {"params": (None, json.dumps({"label_prompt": "cardiomegaly", "result_extension": ".nrrd"}))}
    answer = Answer(server.url, "POST", f"/infer/nano-cxr?image={sample['id']}", X_API_Key=KEY)
    _, _, file = answer.parts()
    labels = nib.Nifti1Image.from_bytes(gzip.decompress(file))
    assert labels.shape == shown.shape
    drawn = server.client.post(f"/infer/nano-cxr?image={sample['id']}&output=image", files=params)
    array, affine = read_nrrd(drawn.content)
    assert array.shape == shown.shape
    assert np.allclose(affine, shown.affine)


def test_what_cannot_be_asked_is_said(server: ServerProcess) -> None:
    study = server.upload(("ct.nii.gz", gzip.compress(nifti())))["id"]

    def refused(status: int, kind: str, path: str, **params: Any) -> str:
        answer = Answer(server.url, "POST", path, **slicer_form(params), X_API_Key=KEY).json(status)
        assert answer["type"] == f"urn:radglint:{kind}"
        return answer["detail"]

    refused(409, "other-modality", f"/infer/nano-cxr?image={study}")
    refused(404, "not-found", f"/infer/other?image={study}")
    refused(404, "not-found", "/infer/nano-ct?image=1.2.3.4")  # this server has no archive
    refused(422, "no-file", "/infer/nano-ct")
    assert ".nrrd, .nii.gz" in refused(422, "bad-params", f"/infer/nano-ct?image={study}", result_extension=".mha")
    assert "uint16" in refused(422, "bad-params", f"/infer/nano-ct?image={study}", result_dtype="float32")
    for threshold in ("much", 1.5, True, [1], "nan"):
        assert "probability" in refused(422, "bad-params", f"/infer/nano-ct?image={study}", threshold=threshold)
    only = Answer(server.url, "POST", f"/infer/nano-ct?image={study}&output=json", **slicer_form({}), X_API_Key=KEY)
    assert only.json()["label_names"] == only.json()["params"]["label_names"]
    before = server.client.get("/datastore/").json()["total"]
    sent = slicer_form({"label_prompt": ["emphysema", 1]}, file=("a.nii.gz", gzip.compress(nifti())))
    told, name, _ = Answer(server.url, "POST", "/infer/nano?image=", **sent, X_API_Key=KEY).parts()
    assert told["label_names"] == {"emphysema": 1, "nodule": 2}
    assert name.endswith(".nii.gz")
    assert server.client.get("/datastore/").json()["total"] == before  # what was sent along is deleted again
    assert server.client.delete(f"/api/v1/studies/{study}").status_code == 204


@pytest.mark.slow
def test_ohif_asks_a_series_of_the_archive(orthanc: Orthanc, tmp_path: Path) -> None:  # noqa: F811 (a fixture)
    """The image is a SeriesInstanceUID; raw NRRD in the series' own voxel order, with the numbers of /info/."""
    orthanc.upload(*write_ct_series(tmp_path / "ct", small_ct(), step=(0.0, 0.0, 8.0), **SERIES))
    password = {"RADGLINT_DICOMWEB_USER": USER, "RADGLINT_DICOMWEB_PASSWORD": str(orthanc.password)}
    server = ServerProcess(tmp_path / "data", "--dicomweb", orthanc.web, key=KEY, RADGLINT_API_KEYS=KEY, **password)
    try:
        first = ohif_infer(server.url, "1.2.3.4.1", threshold="0.02")
        assert first.kind == "application/octet-stream"
        array, affine = read_nrrd(first.content)
        assert array.shape == (48, 40, 6)
        assert np.allclose(affine, [[-7, 0, 0, 10], [0, -8, 0, 20], [0, 0, 8, -30], [0, 0, 0, 1]])
        wanted = "bronchial stent; left pleural effusion"
        some, _ = read_nrrd(ohif_infer(server.url, "1.2.3.4.1", threshold="0.01", label_prompt=wanted).content)
        ct = server.client.get("/info/").json()["models"]["nano-ct"]["labels"]
        assert set(np.unique(some)) <= {0, ct["pleural effusion"], len(ct) + 1}
        segmentation = Answer(server.url, "POST", "/infer/nano-ct?image=1.2.3.4.1&output=dicom_seg", X_API_Key=KEY)
        assert segmentation.content[128:132] == b"DICM"
        assert ohif_infer(server.url, "1.2.3.4.77").status == 404
        assert len(server.client.get("/api/v1/studies").json()["studies"]) == 1  # fetched once
        orthanc.kill()
        assert ohif_infer(server.url, "1.2.3.4.78").status == 503
    finally:
        orthanc.start()
        assert server.stop() == 0
