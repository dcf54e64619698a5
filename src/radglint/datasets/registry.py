"""The public data sets that radglint reads: licence, citation, layout, and the adapter of each.

Nothing is downloaded: whoever has accepted a data set's terms points radglint at its folder. A licence given here is a
pointer for the reader, not legal advice: the page of the data set decides.

Read at the source or in a copy of it: the terms of CT-RATE, ReXGroundingCT, RSNA, NIH ChestX-ray14, Open-i and the
COVID-19 collection, and that of LIDC-IDRI in a second place. From memory: the terms of the PhysioNet and Stanford sets,
PadChest, SIIM-ACR, COVID-19-AR and RAD-ChestCT.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from radglint.errors import InputError
from radglint.manifest import ManifestRow

Convert = Callable[[Path, Path], Iterator[ManifestRow]]
"""Source folder and output folder to rows; masks that must be decoded are written below the output folder."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is opened.

    Attributes:
        name: what the command line takes and what a manifest row carries.
        title: its name in print.
        modality: CXR or CT.
        licence: under which terms its owner gives it out.
        citation: the paper to cite, with venue and DOI or arXiv number where there is one.
        url_name: host and path of its page, without the scheme.
        shares_patients_with: other sets that hold images of the same patients.
        expects: the folder layout that the adapter reads, in one line.
        module: `MODULE` or `MODULE:FUNCTION` below `radglint.datasets`; without a function, `convert`.
    """

    name: str
    title: str
    modality: Literal["CXR", "CT"]
    licence: str
    citation: str
    url_name: str
    shares_patients_with: tuple[str, ...]
    expects: str
    module: str


_PHYSIONET = "PhysioNet Credentialed Health Data License 1.5.0 (training and a signed data use agreement)"
_STANFORD = "Stanford University Dataset Research Use Agreement (non-commercial research, no redistribution)"
_CT_RATE = "CC BY-NC-SA 4.0 (access after accepting the terms)"
_CT_RATE_PAPER = (
    "Hamamci et al., Developing generalist foundation models from a multimodal dataset for 3D computed tomography, "
    "arXiv:2403.17834, 2024"
)

_ALL = (
    DatasetInfo(
        "mimic-cxr-jpg", "MIMIC-CXR-JPG", "CXR", _PHYSIONET,
        "Johnson et al., MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs, "
        "arXiv:1901.07042, 2019; reports: Johnson et al., MIMIC-CXR, Scientific Data 6:317, 2019, "
        "doi:10.1038/s41597-019-0322-0",
        "physionet.org/content/mimic-cxr-jpg", ("ms-cxr",),
        "files/pNN/pSUBJECT/sSTUDY/DICOM.jpg, mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv[.gz]; reports "
        "(optional) as files/pNN/pSUBJECT/sSTUDY.txt here or below mimic-cxr-reports/",
        "mimic_cxr",
    ),
    DatasetInfo(
        "chexpert", "CheXpert", "CXR", _STANFORD,
        "Irvin et al., CheXpert: a large chest radiograph dataset with uncertainty labels and expert comparison, "
        "AAAI 2019, doi:10.1609/aaai.v33i01.3301590",
        "stanfordmlgroup.github.io/competitions/chexpert", ("chexpert-plus", "chexlocalize"),
        "train.csv, valid.csv and (optional) test_labels.csv or groundtruth.csv beside train/, valid/ and test/, "
        "here or in CheXpert-v1.0[-small]/",
        "chexpert",
    ),
    DatasetInfo(
        "chexpert-plus", "CheXpert Plus", "CXR", _STANFORD,
        "Chambon et al., CheXpert Plus: augmenting a large chest X-ray dataset with text radiology reports, patient "
        "demographics and additional image formats, arXiv:2405.19538, 2024",
        "stanfordaimi.azurewebsites.net/datasets/5158c524-d3ab-4e02-96e9-6ee9efc110a1", ("chexpert", "chexlocalize"),
        "df_chexpert_plus_240401.csv beside PNG/ (or the CheXpert JPEG tree), and optionally chexbert_labels/",
        "chexpert_plus",
    ),
    DatasetInfo(
        "nih-chestxray14", "NIH ChestX-ray14", "CXR",
        "no restriction on use; link the NIH download site, cite the paper, acknowledge the NIH Clinical Center",
        "Wang et al., ChestX-ray8: hospital-scale chest X-ray database and benchmarks on weakly-supervised "
        "classification and localization of common thorax diseases, CVPR 2017, doi:10.1109/CVPR.2017.369",
        "nihcc.app.box.com/v/ChestXray-NIHCC", ("chestx-det10", "rsna-pneumonia", "siim-pneumothorax"),
        "Data_Entry_2017[_v2020].csv, train_val_list.txt, test_list.txt, BBox_List_2017.csv (optional), and the PNG "
        "files in images_001/images/ to images_012/images/ or in images/",
        "nih_cxr14",
    ),
    DatasetInfo(
        "padchest", "PadChest", "CXR", "PadChest Dataset Research Use Agreement (BIMCV; non-commercial research)",
        "Bustos et al., PadChest: a large chest x-ray image dataset with multi-label annotated reports, Medical Image "
        "Analysis 66:101797, 2020, doi:10.1016/j.media.2020.101797",
        "bimcv.cipf.es/bimcv-projects/padchest", (),
        "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz] beside the 16-bit PNG files, in folders by "
        "ImageDir (0/ to 54/) or flat",
        "padchest",
    ),
    DatasetInfo(
        "openi", "Open-i Indiana University chest X-rays", "CXR", "CC BY-NC-ND 4.0 (stated in every report file)",
        "Demner-Fushman et al., Preparing a collection of radiology examinations for distribution and retrieval, "
        "JAMIA 23(2):304-310, 2016, doi:10.1093/jamia/ocv080",
        "openi.nlm.nih.gov", (),
        "ecgen-radiology/N.xml with NLMCXR_png/CXR....png; or indiana_reports.csv and indiana_projections.csv with "
        "images/images_normalized/",
        "openi",
    ),
    DatasetInfo(
        "vindr-cxr", "VinDr-CXR", "CXR", _PHYSIONET,
        "Nguyen et al., VinDr-CXR: an open dataset of chest X-rays with radiologist's annotations, Scientific Data "
        "9:429, 2022, doi:10.1038/s41597-022-01498-w",
        "physionet.org/content/vindr-cxr", (),
        "annotations/{annotations,image_labels}_{train,test}.csv, train/IMAGE.dicom, test/IMAGE.dicom",
        "vindr_cxr",
    ),
    DatasetInfo(
        "rsna-pneumonia", "RSNA Pneumonia Detection Challenge 2018", "CXR",
        "terms of the RSNA challenge: research, education and other purposes, commercial or not, with attribution",
        "Shih et al., Augmenting the National Institutes of Health chest radiograph dataset with expert annotations "
        "of possible pneumonia, Radiology: Artificial Intelligence 1(1):e180041, 2019, doi:10.1148/ryai.2019180041",
        "rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
        ("nih-chestxray14", "chestx-det10", "siim-pneumothorax"),
        "stage_2_train_labels.csv, stage_2_detailed_class_info.csv, stage_2_train_images/PATIENT.dcm",
        "rsna_pneumonia",
    ),
    DatasetInfo(
        "siim-pneumothorax", "SIIM-ACR Pneumothorax Segmentation", "CXR",
        "rules of the SIIM-ACR challenge: non-commercial research and education",
        "SIIM-ACR Pneumothorax Segmentation challenge, Society for Imaging Informatics in Medicine and American "
        "College of Radiology, 2019; labels: Filice et al., Crowdsourcing pneumothorax annotations using machine "
        "learning annotations on the NIH chest X-ray dataset, J Digit Imaging 33:490-496, 2020, "
        "doi:10.1007/s10278-019-00299-9",
        "kaggle.com/c/siim-acr-pneumothorax-segmentation", ("nih-chestxray14", "chestx-det10", "rsna-pneumonia"),
        "train-rle.csv beside a tree of DICOM files named by their SOPInstanceUID (dicom-images-train/)",
        "siim_pneumothorax",
    ),
    DatasetInfo(
        "ms-cxr", "MS-CXR", "CXR", _PHYSIONET,
        "Boecking et al., Making the most of text semantics to improve biomedical vision-language processing, ECCV "
        "2022, doi:10.1007/978-3-031-20059-5_1",
        "physionet.org/content/ms-cxr", ("mimic-cxr-jpg",),
        "MS_CXR_Local_Alignment_v*.csv or .json, with the MIMIC-CXR-JPG images below files/ here or beside it",
        "ms_cxr",
    ),
    DatasetInfo(
        "chestx-det10", "ChestX-Det10", "CXR",
        "images as NIH ChestX-ray14; annotations from Deepwise AI Lab, for research",
        "Liu, Lian, Yu, ChestX-Det10: chest X-ray dataset on detection of thoracic abnormalities, arXiv:2006.10550, "
        "2020",
        "github.com/Deepwise-AILab/ChestX-Det10-Dataset",
        ("nih-chestxray14", "rsna-pneumonia", "siim-pneumothorax"),
        "train.json, test.json, train_data/, test_data/",
        "chestx_det",
    ),
    DatasetInfo(
        "chexlocalize", "CheXlocalize", "CXR", _STANFORD,
        "Saporta et al., Benchmarking saliency methods for chest X-ray interpretation, Nature Machine Intelligence "
        "4:867-878, 2022, doi:10.1038/s42256-022-00536-x",
        "stanfordaimi.azurewebsites.net/datasets/abfb76e5-70d5-4315-badc-c94dd82e3d6d", ("chexpert", "chexpert-plus"),
        "CheXlocalize/gt_segmentations_{val,test}.json beside CheXpert/{val,test}/ and their label files",
        "chexlocalize",
    ),
    DatasetInfo(
        "covid-19-cxr", "COVID-19 image data collection", "CXR",
        "one licence per image, in the column `license` (kept in every row)",
        "Cohen et al., COVID-19 image data collection: prospective predictions are the future, Machine Learning for "
        "Biomedical Imaging 1, 2020, arXiv:2006.11988",
        "github.com/ieee8023/covid-chestxray-dataset", (),
        "metadata.csv, images/, and optionally annotations/",
        "covid_cxr",
    ),
    DatasetInfo(
        "covid-19-rural", "COVID-19 Rural (COVID-19-AR) with opacity outlines", "CXR",
        "images CC BY 4.0 (COVID-19-AR of The Cancer Imaging Archive); no licence stated for the outlines",
        "images: Desai et al., Chest imaging representing a COVID-19 positive rural U.S. population, Scientific Data "
        "7:414, 2020, doi:10.1038/s41597-020-00741-6; data: doi:10.7937/tcia.2020.py71-5978; outlines: Tang et al., "
        "Deep learning segmentation model for automated detection of the opacity regions in the chest X-rays of the "
        "Covid-19 positive patients and the application for disease severity, medRxiv, 2020",
        "github.com/haimingt/opacity_segmentation_covid_chest_X_ray", (),
        "covid_rural_annot/jpgs/ and covid_rural_annot/pngs_masks/",
        "covid_cxr:convert_rural",
    ),
    DatasetInfo(
        "ct-rate-v1", "CT-RATE, first release", "CT", _CT_RATE, _CT_RATE_PAPER,
        "huggingface.co/datasets/ibrahimhamamci/CT-RATE", ("ct-rate-v2", "rexgroundingct"),
        "dataset/train/, dataset/valid/ (stored values, not HU) with multi_abnormality_labels/, radiology_text_reports/"
        " and metadata/",
        "ct_rate:convert_v1",
    ),
    DatasetInfo(
        "ct-rate-v2", "CT-RATE, second release (fixed)", "CT", _CT_RATE, _CT_RATE_PAPER,
        "huggingface.co/datasets/ibrahimhamamci/CT-RATE", ("ct-rate-v1", "rexgroundingct"),
        "dataset/train_fixed/, dataset/valid_fixed/ (HU) with multi_abnormality_labels/, radiology_text_reports/ and "
        "metadata/",
        "ct_rate:convert_v2",
    ),
    DatasetInfo(
        "rad-chestct", "RAD-ChestCT", "CT", "CC BY-NC-ND 4.0 (not confirmed: see its page)",
        "Draelos et al., Machine-learning-based multiple abnormality prediction with large-scale chest computed "
        "tomography volumes, Medical Image Analysis 67:101857, 2021, doi:10.1016/j.media.2020.101857",
        "zenodo.org/records/6406114", (),
        "trnNNNNN.npz, valNNNNN.npz, tstNNNNN.npz with imgtrain/imgvalid/imgtest_Abnormality_and_Location_Labels.csv",
        "rad_chestct",
    ),
    DatasetInfo(
        "rexgroundingct", "ReXGroundingCT", "CT", "CC BY-NC-SA 4.0 (images: CT-RATE)",
        "Baharoon et al., ReXGroundingCT: a 3D chest CT dataset for segmentation of findings from free-text reports, "
        "arXiv:2507.22030, 2025",
        "huggingface.co/datasets/rajpurkarlab/ReXGroundingCT", ("ct-rate-v1", "ct-rate-v2"),
        "dataset.json, images_flat/ and segmentations/",
        "rexgroundingct",
    ),
    DatasetInfo(
        "lidc-idri", "LIDC-IDRI", "CT", "CC BY 3.0",
        "Armato et al., The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI), "
        "Medical Physics 38(2):915-931, 2011, doi:10.1118/1.3528204; data: doi:10.7937/K9/TCIA.2015.LO9QL9SX",
        "cancerimagingarchive.net/collection/lidc-idri", (),
        "LIDC-IDRI-NNNN/STUDY/SERIES/*.dcm with the readers' XML file in the series folder",
        "lidc",
    ),
)  # fmt: skip

DATASETS: dict[str, DatasetInfo] = {info.name: info for info in _ALL}


def find(name: str) -> DatasetInfo:
    """A data set by name; case and the kind of hyphen do not matter.

    Raises:
        InputError: no such data set; the message lists all names and the closest one.
    """
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    if plain in DATASETS:
        return DATASETS[plain]
    close = difflib.get_close_matches(plain, DATASETS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"no data set {name!r}: {hint}known are {', '.join(DATASETS)}")


def adapter(name: str) -> Convert:
    """The function that turns a data set's folder into manifest rows; its module is imported only now.

    Args:
        name: a key of `DATASETS`.

    Returns:
        `convert(source, output)`, which yields rows.

    Raises:
        InputError: no such data set.
    """
    module, _, function = find(name).module.partition(":")
    return getattr(importlib.import_module(f"radglint.datasets.{module}"), function or "convert")
