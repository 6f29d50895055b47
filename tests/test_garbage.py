import gc

from medflow.garbage import SELDOM, seldom_collected


def test_garbage_is_searched_for_seldom_until_the_last_block_ends():
    usual = gc.get_threshold()

    with seldom_collected():
        with seldom_collected():
            assert gc.get_threshold() == SELDOM
        assert gc.get_threshold() == SELDOM
        assert gc.get_freeze_count()

    assert gc.get_threshold() == usual
    assert not gc.get_freeze_count()
