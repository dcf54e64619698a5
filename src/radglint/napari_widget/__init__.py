"""radglint inside napari: a reader that keeps the geometry, and a dock widget that asks.

    path --reader--> MedicalImage --layers.image_layer--> image layer with its affine, the MedicalImage in its metadata
    queries --desk, in a worker thread--> Findings --layers.mask_layer--> a labels layer per query on the same grid
    labels layer, edited by hand or not --layers.to_native--> NIfTI or PNG in the geometry of the file

napari finds both through `napari.yaml` and the entry point `napari.manifest`. Install with
`pip install "radglint[napari]"`. The world of napari is the patient in millimetres, in the order that napari shows
best: axis 0 to the head, axis 1 to the back, axis 2 to the patient's left. That is DICOM's (x, y, z) read backwards,
and a slice then looks as on a workstation: front on top, the patient's right on the left.
"""
