"""Words that two prompts share, the region of those they do not, and maps blended by both."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tokenflow_ops.baselines.blending import PromptChange, attend, attention_maps, compare_words

WORDS = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))


def prompt(*words: int) -> torch.Tensor:
    return WORDS[list(words)][None]


def test_maps_and_values_are_attention() -> None:
    q, k, v = (torch.randn(2, tokens, 12) for tokens in (5, 7, 7))
    by_head = [tokens.unflatten(-1, (3, 4)).transpose(1, 2) for tokens in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(attention_maps(q, k, 3), v), wanted)


def test_a_replaced_word_is_new_on_both_sides() -> None:
    closest, new = compare_words(prompt(0, 5, 2, 3), prompt(0, 1, 2, 3))
    assert new.tolist() == [[False, True, False, False]]
    assert closest[~new].tolist() == [0, 2, 3]


def test_words_are_found_where_they_moved() -> None:
    closest, new = compare_words(prompt(0, 4, 5, 1, 2), prompt(0, 1, 2))
    assert new.tolist() == [[False, True, True, False, False]]
    assert closest[0, [0, 3, 4]].tolist() == [0, 1, 2]
    assert not compare_words(prompt(0, 1, 2), prompt(0, 4, 5, 1, 2))[1].any()


def test_what_follows_a_new_word_is_not_new() -> None:
    """A text encoder's later tokens change a little with the earlier ones."""
    drifted = (
        prompt(0, 5, 2, 3)
        + 0.2
        * torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
        * torch.tensor([0, 0, 1, 1])[:, None]
    )
    assert compare_words(drifted, prompt(0, 1, 2, 3))[1].tolist() == [[False, True, False, False]]


def test_the_region_is_where_the_lost_words_are_seen() -> None:
    maps = torch.zeros(2, 16, 3)
    maps[..., 0] = 1
    maps[0, 0] = torch.tensor([0.2, 0.8, 0])  # a corner of frame 0, of a 4 x 4 grid
    maps[1, :, 1] = 0.1
    source, edit = prompt(0, 1, 2).expand(2, -1, -1), prompt(0, 5, 2).expand(2, -1, -1)
    change = PromptChange.between(source, edit, maps, (4, 4))
    corner = torch.zeros(4, 4, dtype=torch.bool)
    corner[:2, :2] = True
    assert torch.equal(change.region((4, 4))[0].view(4, 4), corner)
    assert torch.equal(
        change.region((8, 8))[0].view(8, 8), corner.repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    assert change.region((2, 2))[0].tolist() == [True, False, False, False]
    assert change.region((4, 4))[1].all()  # seen evenly: strong is measured within a frame


def test_strong_is_three_tenths_of_the_strongest() -> None:
    attention = torch.zeros(1, 1, 9)
    attention[0, 0, [0, 4, 8]] = torch.tensor([1, 0.31, 0.29])
    change = PromptChange(
        torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bool), attention
    )
    assert change.region((1, 9)).tolist() == [
        [True, True, False, True, True, True, False, False, False]
    ]


def test_equal_prompts_leave_nothing_to_the_edit() -> None:
    words = prompt(0, 1, 2)
    change = PromptChange.between(words, words + 1e-4, torch.rand(1, 4, 3), (2, 2))
    assert not change.new.any()
    assert not change.region((4, 4)).any()


def test_maps_are_the_sources_for_shared_words() -> None:
    change = PromptChange.between(
        prompt(0, 1, 2), prompt(0, 5, 2, 3, 1), torch.rand(1, 4, 3), (2, 2)
    )
    source, edit = torch.rand(1, 2, 4, 3), torch.rand(1, 2, 4, 5)
    wanted = torch.stack(
        [source[..., 0], edit[..., 1], source[..., 2], edit[..., 3], source[..., 1]], -1
    )
    assert torch.equal(change.blend(source, edit), wanted)
