from medflow_example import MeanHeartRate


def test_contract(check_model):
    check_model(MeanHeartRate)
