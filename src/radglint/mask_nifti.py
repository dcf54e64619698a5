"""A 3D mask as NIfTI in the geometry of the image it lies on."""

from __future__ import annotations

from typing import Any

import numpy as np

from radglint.geometry import shear_deg
from radglint.image import MedicalImage

# Above this angle between two axes and a right angle a qform cannot hold the grid.
MAX_QFORM_SHEAR_DEG = 1e-3

_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def mask_to_nifti(mask: np.ndarray, image: MedicalImage) -> Any:
    """A 3D mask as a nibabel image in the geometry of its source.

    Args:
        mask: bool, `depth height width`.
        image: the CT; its `source_header`, if it fits, gives qform, sform and their codes unchanged.

    Returns:
        `nibabel.Nifti1Image` (or `Nifti2Image` for a NIfTI-2 source), uint8, in mm. Nothing else of the source header,
        such as a description that could name the patient, is taken over.
    """
    return volume_to_nifti(mask.view(np.uint8), image, "radglint mask")


def volume_to_nifti(array: np.ndarray, image: MedicalImage, description: str) -> Any:
    """Any array on the grid of a CT as a nibabel image; see `mask_to_nifti`.

    Args:
        array: uint8 or int16, `depth height width`.
        image: the CT.
        description: at most 79 ASCII characters.
    """
    import nibabel as nib  # not at the top: a radiograph's answer has no use for it, and it costs 0.15 s

    data = array.transpose(2, 1, 0)
    affine = np.asarray(image.nifti_affine)
    source = image.source_header
    if isinstance(source, nib.Nifti1Header) and np.allclose(
        np.asarray(source.get_best_affine()), affine, rtol=1e-5, atol=1e-4
    ):
        kind = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
        header = kind.header_class()
        header.set_data_shape(data.shape)
        for name in _GEOMETRY_FIELDS:
            header[name] = source[name]
        header["pixdim"][:4] = source["pixdim"][:4]
        nifti = kind(data, None, header=header)
    else:
        nifti = nib.Nifti1Image(data, affine)
        nifti.set_sform(affine, code=1)
        sheared = shear_deg(affine) > MAX_QFORM_SHEAR_DEG
        nifti.set_qform(affine, code=0 if sheared else 1, strip_shears=True, update_affine=False)
    nifti.set_data_dtype(array.dtype)
    nifti.header.set_xyzt_units("mm")
    nifti.header["descrip"] = description.encode("ascii")
    return nifti
