"""What passes through the fork's prompt builder is noted on the way."""

from sdpo.parity.live_fork.teacher_prompts import LivePrompt, NotedList, WatchedTokenizer


class Tokenizer:
    padding_side = "right"

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages, **call):
        return len(messages)


def test_the_entry_that_was_taken_is_known():
    texts = NotedList(["a", "b", "c"])
    assert (texts.taken, texts[1], texts.taken) == (None, "b", 1)


def test_decoded_and_rendered_texts_are_noted_and_the_rest_is_passed_on():
    inner, prompt = Tokenizer(), LivePrompt()
    watched = WatchedTokenizer(inner, prompt)
    watched.padding_side = "left"
    assert (inner.padding_side, watched.padding_side) == ("left", "left")
    assert watched.decode([97, 98], skip_special_tokens=True) == "ab"
    message: dict[str, object] = {"role": "user", "content": "x"}
    assert watched.apply_chat_template([[message]], tokenize=True) == 1
    assert prompt.response_texts == ["ab"]
    assert prompt.messages == [[message]]
    assert prompt.template_call == {"tokenize": True}
