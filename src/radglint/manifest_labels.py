"""Label names of a manifest: lower case, and not a misspelling of a name that the public label sets use.

Any name may be used; only one that is a letter or two away from a known name, and is not known itself, is refused. The
list was written from memory of the sets' own class lists, lower-cased; where two sets differ (edema, oedema) both are
known.
"""

from __future__ import annotations

from functools import lru_cache

KNOWN_LABELS: frozenset[str] = frozenset(
    name.strip()
    for name in """
    no finding, normal, abnormal, other lesion, other disease
    atelectasis, lobar atelectasis, cardiomegaly, consolidation, air space opacity, edema, oedema, pulmonary edema
    pulmonary oedema, effusion, pleural effusion, emphysema, fibrosis, pulmonary fibrosis, hernia, hiatal hernia
    hiatus hernia, infiltration, infiltrate, mass, lung mass, nodule, lung nodule, pulmonary nodule, nodules
    nodule/mass, pleural thickening, pneumonia, pneumothorax, enlarged cardiomediastinum
    enlarged cardiomediastinal silhouette, cardiomediastinal enlargement, lung opacity, airspace opacity
    lung lesion, lesion, fracture, support devices
    pleural other, rib fracture, clavicle fracture, vertebral fracture, calcification, diffuse nodule, diffuse nodules
    aortic enlargement, aortic elongation, aortic atheromatosis, interstitial lung disease, interstitial pattern
    interstitial opacity, reticular pattern, ground-glass opacity, ground glass opacity, mediastinal shift
    lung cavity, cavitation, lung cyst, bulla, enlarged pulmonary artery, tuberculosis, lung tumor, lung tumour
    copd, copd signs, covid-19, viral pneumonia, bacterial pneumonia, pulmonary congestion, granuloma, scarring
    lymphadenopathy, mediastinal lymphadenopathy, adenopathy, pericardial effusion, medical material, medical device
    arterial wall calcification, coronary artery wall calcification, coronary calcification, bronchial wall thickening
    peribronchial thickening, bronchiectasis, bronchiolectasis, bronchiolitis, bronchitis, tree-in-bud, tree in bud
    mosaic attenuation, mosaic attenuation pattern, interlobular septal thickening, septal thickening
    pulmonary fibrotic sequela, honeycombing, halo sign, reverse halo sign, crazy-paving
    pacemaker, chest tube, endotracheal tube, tracheal tube, feeding tube, nasogastric tube, tracheostomy tube
    central line, central venous catheter, wire, sternotomy, prosthesis, subcutaneous emphysema, pneumomediastinum
    pneumoperitoneum, pneumoperitoneo, pneumothoraces, scoliosis, kyphosis, spondylosis, hilar enlargement
    mediastinal mass, hilar lymphadenopathy, hemidiaphragm elevation, hyperinflation, hypoinflation
    hyperlucency, hypolucency
    azygos lobe, situs inversus, tortuous aorta, calcified granuloma, calcified nodule, calcified pleural plaques
    """.replace("\n", ",").split(",")
    if name.strip()
)

_MIN_LENGTH_ONE, _MIN_LENGTH_TWO = 5, 10
"""From which length on one and two wrong letters make a misspelling; shorter names are too close to each other."""


@lru_cache(maxsize=4096)
def label_problem(name: str) -> str | None:
    """What is wrong with a label's name; None if nothing.

    Args:
        name: as the manifest writes it.

    Returns:
        What was expected and what to do, for a message.
    """
    plain = " ".join(name.replace("_", " ").lower().split())
    if not plain:
        return f"expected a name, got {name!r}; name the finding"
    if name in KNOWN_LABELS:
        return None
    meant = plain if plain in KNOWN_LABELS else closest_known(plain)
    if meant is not None and meant != name:
        return f"unknown label {name!r}; did you mean {meant!r}?"
    if name != " ".join(name.lower().split()):
        return f"expected a label in lower case with single spaces, got {name!r}; write {plain!r}"
    return None


def closest_known(name: str) -> str | None:
    """The known label that a lower-case name misspells: one letter away, or two for a long name; None if there is none.

    Args:
        name: lower case, single spaces.
    """
    most = 2 if len(name) >= _MIN_LENGTH_TWO else 1 if len(name) >= _MIN_LENGTH_ONE else 0
    near = [known for known in KNOWN_LABELS if abs(len(known) - len(name)) <= most]
    found = [(num_edits(name, known), known) for known in near if known.rstrip("s") != name.rstrip("s")]
    best = min((pair for pair in found if pair[0] <= most), default=None)
    return best[1] if best else None


def num_edits(first: str, second: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour to turn one text into the other.

    Reference: optimal string alignment (Damerau-Levenshtein distance in which no letter is edited twice).
    """
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        last, row = row, [i]
        for j, b in enumerate(second, start=1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before = last
    return row[-1]
