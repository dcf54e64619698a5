"""What a simulator can draw and a sentence can say: a `Fact`, and the names of every concept.

Some names are kept in `HELD_OUT` and are never written in training, so that a test can ask in words the model never
read. Names are stored with a leading ``~`` where English takes no article ("~consolidation", "~pleural fluid").
"""

from __future__ import annotations

from dataclasses import dataclass

from radglint.place_words import Side, Size, Zone


@dataclass(frozen=True)
class Fact:
    """One finding as a report would state it; sides are the patient's.

    Attributes:
        concept: A key of `BANK`.
        side: Patient side, or None where the finding has none (the heart, an endotracheal tube).
        zone: Height in the lung, or None.
        size: Rough size, or None.
    """

    concept: str
    side: Side | None = None
    zone: Zone | None = None
    size: Size | None = None

    def __post_init__(self) -> None:
        """Refuse a concept without names.

        Raises:
            ValueError: If `concept` is unknown.
        """
        if self.concept not in NAMES:
            raise ValueError(f"concept: expected one of {', '.join(NAMES)}; got {self.concept!r}")


NAMES: dict[str, tuple[str, ...]] = {
    "nodule": (
        "nodule",
        "pulmonary nodule",
        "lung nodule",
        "nodular opacity",
        "nodular density",
        "rounded opacity",
        "solitary pulmonary nodule",
        "solid nodule",
        "small round opacity",
        "spot on the lung",
        "nodular lesion",
    ),
    "mass": (
        "mass",
        "lung mass",
        "pulmonary mass",
        "mass lesion",
        "tumour",
        "tumor",
        "lung tumor",
        "lobulated mass",
        "mass-like opacity",
        "large rounded opacity",
        "neoplasm",
        "~lung cancer",
        "bronchogenic carcinoma",
    ),
    "consolidation": (
        "~consolidation",
        "airspace opacity",
        "infiltrate",
        "~pneumonia",
        "~airspace consolidation",
        "~airspace disease",
        "focal opacity",
        "patchy opacity",
        "~lobar pneumonia",
        "~lobar consolidation",
        "area of consolidation",
        "alveolar opacity",
        "pulmonary infiltrate",
        "~lung infection",
        "infectious infiltrate",
    ),
    "ground-glass opacity": (
        "ground-glass opacity",
        "ground glass opacity",
        "hazy opacity",
        "~ground-glass opacification",
        "GGO",
        "~haziness",
        "~ground-glass opacities",
        "faint hazy density",
        "~ground glass change",
        "veil-like opacity",
    ),
    "pleural effusion": (
        "pleural effusion",
        "effusion",
        "~pleural fluid",
        "pleural fluid collection",
        "~fluid in the pleural space",
        "hydrothorax",
        "~blunting of the costophrenic angle",
        "~fluid around the lung",
        "layering effusion",
    ),
    "pneumothorax": (
        "pneumothorax",
        "~pleural air",
        "~air in the pleural space",
        "PTX",
        "~lung collapse from pleural air",
        "~visible pleural line with absent lung markings",
        "apical pneumothorax",
    ),
    "atelectasis": (
        "~atelectasis",
        "~volume loss",
        "~collapse",
        "~partial lung collapse",
        "~linear atelectasis",
        "~subsegmental atelectasis",
        "~plate-like atelectasis",
        "~bandlike opacity",
        "~discoid atelectasis",
        "~atelectatic change",
    ),
    "cardiomegaly": (
        "~cardiomegaly",
        "enlarged heart",
        "~cardiac enlargement",
        "enlarged cardiac silhouette",
        "big heart",
        "enlarged heart shadow",
        "~enlargement of the cardiac silhouette",
        "increased cardiothoracic ratio",
        "~heart enlargement",
    ),
    "interstitial pattern": (
        "interstitial pattern",
        "~interstitial markings",
        "reticular pattern",
        "~reticular opacities",
        "~interstitial opacities",
        "~interstitial oedema",
        "~interstitial edema",
        "~septal lines",
        "~Kerley B lines",
        "~interstitial thickening",
        "~pulmonary fibrosis",
        "~interstitial lung disease",
        "~fibrosis",
    ),
    "emphysema": (
        "~emphysema",
        "~emphysematous change",
        "~pulmonary emphysema",
        "~centrilobular emphysema",
        "~bullae",
        "~emphysematous destruction",
        "~areas of low attenuation without walls",
    ),
    "pacemaker": (
        "pacemaker",
        "cardiac pacemaker",
        "pacemaker generator",
        "~pacemaker leads",
        "~pacing leads",
        "cardiac device",
        "pacing device",
        "implanted cardiac device",
        "dual lead pacemaker",
        "ICD",
    ),
    "central line": (
        "central line",
        "central venous catheter",
        "central venous line",
        "CVC",
        "venous catheter",
        "PICC line",
        "jugular catheter",
        "subclavian catheter",
        "port catheter",
    ),
    "endotracheal tube": (
        "endotracheal tube",
        "ET tube",
        "ETT",
        "breathing tube",
        "tube in the trachea",
        "~tracheal intubation",
    ),
    "chest tube": (
        "chest tube",
        "chest drain",
        "pleural drain",
        "thoracostomy tube",
        "intercostal drain",
        "pleural tube",
    ),
    "rib fracture": (
        "rib fracture",
        "fractured rib",
        "broken rib",
        "displaced rib fracture",
        "fracture of a rib",
        "~rib fractures",
    ),
    "calcified nodule": (
        "calcified nodule",
        "calcified granuloma",
        "granuloma",
        "calcification",
        "~pulmonary calcification",
        "dense calcified nodule",
        "calcified lung nodule",
        "calcific density",
    ),
    "hiatal hernia": (
        "hiatal hernia",
        "hiatus hernia",
        "~hernia",
        "diaphragmatic hernia",
        "retrocardiac hernia",
        "~herniation of the stomach into the chest",
    ),
}

HELD_OUT: dict[str, tuple[str, ...]] = {
    "nodule": ("coin lesion", "nodular focus", "small round lesion in the lung"),
    "mass": ("pulmonary neoplasm", "space-occupying lesion", "malignant growth"),
    "consolidation": ("~parenchymal opacification", "pneumonic infiltrate", "~alveolar consolidation"),
    "ground-glass opacity": ("~ground-glass attenuation", "~hazy opacification"),
    "pleural effusion": ("~pleural liquid", "~water around the lung", "pleural collection"),
    "pneumothorax": ("~air around the lung", "collapsed lung with pleural air"),
    "atelectasis": ("~collapsed lung tissue", "~band atelectasis"),
    "cardiomegaly": ("~large heart size", "dilated heart", "widened heart shadow"),
    "interstitial pattern": ("~reticulation", "~thickened interlobular septa"),
    "emphysema": ("~destroyed air-filled lung", "~COPD with emphysema"),
    "pacemaker": ("pulse generator", "implantable pacing system"),
    "central line": ("central catheter", "internal jugular line"),
    "endotracheal tube": ("intubation tube", "airway tube"),
    "chest tube": ("thoracic drain", "pleural catheter"),
    "rib fracture": ("cracked rib", "costal fracture"),
    "calcified nodule": ("healed granuloma", "nodular calcification"),
    "hiatal hernia": ("stomach hernia", "sliding hiatal hernia"),
}
"""Names per concept that training never writes: the unseen phrasings of an evaluation."""

CONCEPTS: tuple[str, ...] = tuple(NAMES)
"""Every concept a sentence can be written for."""
