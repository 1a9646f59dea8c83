"""Parts of a batch add up to the loss of the whole, however it is cut."""

import torch

from trainers.objectives.sums import Sums, loss_and_correct


def test_shares_of_uneven_parts_add_up_to_the_mean_over_all_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator)
    labels = torch.randint(0, 5, (12,), generator=generator)
    labels[[1, 2, 3, 8]] = -100
    pairs = torch.randn(4, 2, generator=generator), torch.tensor([0, 1, 1, 0])
    num_labels = {"mlm": 8, "nsp": 4}

    total = torch.zeros(())
    for tokens, samples in ((slice(0, 6), slice(0, 1)), (slice(6, 12), slice(1, 4))):
        mlm = loss_and_correct(logits[tokens], labels[tokens])
        nsp = loss_and_correct(pairs[0][samples], pairs[1][samples])
        sums = Sums({"mlm": mlm[0], "nsp": nsp[0]}, {"mlm": mlm[1], "nsp": nsp[1]})
        total += sums.share(num_labels)
        assert sums.stack().tolist() == [*map(float, (mlm[0], nsp[0], mlm[1], nsp[1]))]
    wanted = torch.nn.functional.cross_entropy(logits, labels)
    wanted += torch.nn.functional.cross_entropy(*pairs)
    torch.testing.assert_close(total, wanted)


def test_a_right_answer_is_not_counted_where_nothing_was_asked() -> None:
    logits = torch.eye(3)
    _, correct = loss_and_correct(logits, torch.tensor([0, -100, 1]))
    assert correct == 1
