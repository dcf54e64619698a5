from radglint.evaluation.results import ProtocolResult


def probe(bank, validation, test, *, seed):
    return ProtocolResult(name="probe", title="Linear probe and k-NN", label_set=bank.title, num_classes=0, columns=("honest",), how={"honest": "x"}, means={"honest": {}})
