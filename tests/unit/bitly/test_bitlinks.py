"""A line of text to a bitlink's name, or the reason why it is none."""

import re
import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harvester.bitly.bitlinks import MAX_CHARACTERS, bitlink, is_bitlink, links_in, parse
from harvester.errors import InvalidBitlink


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A plain name stays what it is.
        ("bit.ly/3xYz", "bit.ly/3xYz"),
        ("es.pn/SuperBowl", "es.pn/SuperBowl"),
        ("bit.ly/my-link_2", "bit.ly/my-link_2"),
        # What people paste around it.
        ("https://bit.ly/x", "bit.ly/x"),
        ("http://bit.ly/x", "bit.ly/x"),
        ("HTTP://Bit.ly/x/", "bit.ly/x"),
        ("HtTpS://bit.ly/x", "bit.ly/x"),
        ("bit.ly/x/", "bit.ly/x"),
        ("bit.ly/x?utm=1", "bit.ly/x"),
        ("bit.ly/x?utm=/a/b", "bit.ly/x"),
        ("bit.ly/x#top", "bit.ly/x"),
        ("bit.ly/x?a=1#b?c", "bit.ly/x"),
        ("bit.ly/x/?utm=1", "bit.ly/x"),
        ("bit.ly/x+", "bit.ly/x"),
        ("https://bit.ly/x+/", "bit.ly/x"),
        ("bit.ly/x+?utm=1", "bit.ly/x"),
        ('"bit.ly/x"', "bit.ly/x"),
        ("'https://bit.ly/x'", "bit.ly/x"),
        ("“bit.ly/x”", "bit.ly/x"),
        ("«bit.ly/x»", "bit.ly/x"),
        ("`bit.ly/x`", "bit.ly/x"),
        ("\ufeffbit.ly/x", "bit.ly/x"),
        ("\ufeffhttps://bit.ly/x", "bit.ly/x"),
        ("bit.ly/x\r\n", "bit.ly/x"),
        ("bit.ly/x\r", "bit.ly/x"),
        ("  bit.ly/x\t", "bit.ly/x"),
        ("\xa0bit.ly/x\u3000", "bit.ly/x"),
        (' "https://BIT.LY/x+?utm=1" \r\n', "bit.ly/x"),
        # The domain has no case, the back-half has.
        ("BIT.LY/AbC", "bit.ly/AbC"),
        ("https://Es.Pn/SuperBowl", "es.pn/SuperBowl"),
        # An international domain has one name, in whatever form it is written.
        ("BÜCHER.example/Ä", "xn--bcher-kva.example/Ä"),
        ("xn--bcher-kva.example/x", "xn--bcher-kva.example/x"),
        ("XN--BCHER-KVA.example/x", "xn--bcher-kva.example/x"),
        ("bu\u0308cher.example/x", "xn--bcher-kva.example/x"),
        ("bücher\u3002example/x", "xn--bcher-kva.example/x"),
        ("ｂｉｔ．ｌｙ/x", "bit.ly/x"),
        ("straße.de/x", "xn--strae-oqa.de/x"),
        ("❤️.ws/x", "xn--qei.ws/x"),
        ("👍🏽.ws/x", "xn--on8h5e.ws/x"),
        ("❤-a_b.ws/x", "xn---a_b-kw4b.ws/x"),
        ("col·lecció.cat/x", "xn--collecci-ioa91d.cat/x"),
        ("COL·LECCIÓ.cat/x", "xn--collecci-ioa91d.cat/x"),
        ("نامه\u200cای.com/x", "xn--mgba3gch31f060k.com/x"),
        # A back-half may be unicode, also as a browser copies it.
        ("bit.ly/é", "bit.ly/é"),
        ("bit.ly/%C3%A9t%C3%A9", "bit.ly/été"),
        ("bit.ly/%f0%9f%a6%a1", "bit.ly/🦡"),
        # What an escape stands for decides.
        ("bit.ly/%61bc", "bit.ly/abc"),
        ("bit.ly/abc%20", "bit.ly/abc"),
        ("bit.ly/abc%22", "bit.ly/abc"),
        ("bit.ly/abc%2B", "bit.ly/abc"),
        ("bit.ly/abc%3Futm=1", "bit.ly/abc"),
        ("bit.ly%2Fabc", "bit.ly/abc"),
        ("https%3A%2F%2Fbit.ly%2Fabc", "bit.ly/abc"),
        # Marks of a sentence, of Markdown and of mail programs, and notes.
        ("bit.ly/x.", "bit.ly/x"),
        ("bit.ly/x!", "bit.ly/x"),
        ("bit.ly/x,", "bit.ly/x"),
        ("《bit.ly/x》", "bit.ly/x"),
        ("❝bit.ly/x❞", "bit.ly/x"),
        ("bit.ly/x？", "bit.ly/x"),
        ("bit.ly/x?u=https://example.com/y", "bit.ly/x"),
        ("bit.ly/x # see example.com/y, example.com/z", "bit.ly/x"),
        ("(bit.ly/x)", "bit.ly/x"),
        ("bit.ly/x).", "bit.ly/x"),
        ("bit.ly/x/.", "bit.ly/x"),
        ("<https://bit.ly/x>", "bit.ly/x"),
        ("„bit.ly/x“", "bit.ly/x"),
        ("‚bit.ly/x‘", "bit.ly/x"),
        ("‹bit.ly/x›", "bit.ly/x"),
        ("「bit.ly/x」", "bit.ly/x"),
        ("| bit.ly/x |", "bit.ly/x"),
        ("**bit.ly/x**", "bit.ly/x"),
        (" bit.ly/x # note", "bit.ly/x"),
        ('bit.ly/x"?a=1', "bit.ly/x"),
        # Marks of bulleted and numbered lists.
        ("- bit.ly/x", "bit.ly/x"),
        ("• bit.ly/x", "bit.ly/x"),
        ("•bit.ly/x", "bit.ly/x"),
        ("* bit.ly/x", "bit.ly/x"),
        ("+ https://bit.ly/x+", "bit.ly/x"),
        ("– bit.ly/x", "bit.ly/x"),
        ("▪\tbit.ly/x", "bit.ly/x"),
        ("→ bit.ly/x", "bit.ly/x"),
        ("1. bit.ly/x", "bit.ly/x"),
        ("12) https://bit.ly/x", "bit.ly/x"),
        ("(3) bit.ly/x", "bit.ly/x"),
        ("[4] bit.ly/x", "bit.ly/x"),
        ("1.2. bit.ly/x", "bit.ly/x"),
        ("a) bit.ly/x", "bit.ly/x"),
        ("- [ ] bit.ly/x", "bit.ly/x"),
        ("- [x] bit.ly/x", "bit.ly/x"),
        (" - <https://bit.ly/x>.", "bit.ly/x"),
        ("* **bit.ly/x**", "bit.ly/x"),
        ("1. “bit.ly/x” # note", "bit.ly/x"),
        ("1.example.com/x", "1.example.com/x"),
        ("a1.bit.ly/x", "a1.bit.ly/x"),
        ("➤ ❤️.ws/x", "xn--qei.ws/x"),
        ("bit.ly/x&nbsp;", "bit.ly/x"),
        ("https://bit.ly/x&nbsp;&ensp;", "bit.ly/x"),
    ],
)
def test_what_people_paste_becomes_the_name(text: str, expected: str) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no slash"),
        ("nonsense", "no slash"),
        ("bit.ly", "no slash"),
        ("https://bit.ly", "no slash"),
        ("bit.ly?x/y", "no slash"),
        ("bit.ly/", "nothing after the slash"),
        ("bit.ly//", "nothing after the slash"),
        ("bit.ly/x//", "more than two segments"),
        ("bit.ly/+", "nothing after the slash"),
        ("bit.ly/?utm=1", "nothing after the slash"),
        ("/x", "no domain"),
        ("https:///x", "no domain"),
        ("bitly/x", "not a domain"),
        ("1.bit.ly/x", "is 1. the number"),
        ("https://12.3.Bit.ly/x", "is 12.3. the number"),
        ("7.j.mp/x", "cannot be a Bitly domain"),
        (".ly/x", "not a domain"),
        ("bit..ly/x", "not a domain"),
        ("bit ly.com/x", "not a domain"),
        ("ftp://bit.ly/x", "a port, a user name, or a scheme"),
        ("https://https://bit.ly/x", "a port, a user name, or a scheme"),
        ("bit.ly:443/x", "a port, a user name, or a scheme"),
        ("me@bit.ly/x", "a port, a user name, or a scheme"),
        ("me:secret@bit.ly/x", "a port, a user name, or a scheme"),
        ("bit.ly/a/b", "more than two segments"),
        ("bit.ly/../user", "more than two segments"),
        ("bit.ly/../../user", "more than two segments"),
        ("bit.ly/..", "a path"),
        ("bit.ly/.", "a path"),
        ("bit.ly/..+", "a path"),
        ("bit.ly/a b", "U+0020"),
        ("bit.ly/a,bit.ly/b", "more than two segments"),
        ("bit.ly/a\x00b", "U+0000"),
        ("bit.ly/a\x1b[31m", "U+001B"),
        ("bit.ly/a\u200bb", "U+200B"),
        ("bit.ly/a\u202eb", "U+202E"),
        ("bit.ly/a\u2028b", "U+2028"),
        ("bit.ly/a\ud800b", "U+D800"),
        ("bit.ly/a%C2%85b", "U+0085"),
        ("bit.ly/a%E2%80%A8b", "U+2028"),
        ("bit.ly/a%2Fb", "more than two segments"),
        ("bit.ly/%2e%2e", "a path"),
        ("bit.ly/..%2fuser", "more than two segments"),
        ("bit.ly/%FF", "a bitlink cannot contain"),
        ("bit.ly/100%", "a bitlink cannot contain"),
        ("bit.ly/a%2561", "a bitlink cannot contain"),
        ("bit.ly/a%00", "U+0000"),
        ("bit.ly/a1?utm=1,https://bit.ly/a2?utm=2", "two links"),
        ("bit.ly/a1?x https://bit.ly/a2", "two links"),
        ("bit.ly/x#,bit.ly/y", "two links"),
        ("12.11/2026", "not a domain"),
        ("127.0.0.1/x", "not a domain"),
        ("-bit.ly/x", "not a domain"),
        ("bit.l/x", "not a domain"),
        ("xn--.ly/x", "not a domain"),
        (f"bit.ly/{'👍' * 2000}", "as it is sent"),
        ("bit.ly/abc&gt;", "HTML name"),
        ("bit.ly/abc&hellip;", "HTML name"),
        ("bit.ly/abc&#8230;", "HTML name"),
        ("bit.ly/abc‥", "cut off"),
        ("bit.ly/abc⋯", "cut off"),
        ("bit.ly/abc…", "cut off"),
        ("bit.ly/abc...", "cut off"),
        ("bit.ly/abc..", "cut off"),
        ("- bit.ly/abc…", "cut off"),
        ("1. bit.ly/abc...", "cut off"),
        ("a→b.ly/x", "not a domain"),
        ("a❤\u2019.ws/x", "not a domain"),
        ("… bit.ly/abc", "not a domain"),
        ("... bit.ly/abc", "not a domain"),
        ("…bit.ly/abc", "not a domain"),
        ("- …bit.ly/abc", "not a domain"),
        ("-it.ly/abc", "not a domain"),
        ("- ", "no slash"),
        ("- bit.ly", "no slash"),
        ("1) /abc", "no domain"),
        ("see bit.ly/abc", "not a domain"),
        ("bit.ly/ab…c", "a bitlink cannot contain"),
        ("bit.ly/a|b", "a bitlink cannot contain"),
        ("bit.ly/abc\ufffd", "U+FFFD"),
        ("bit.ly/abc\u200b", "U+200B"),
        ("bit.ly/abc\u3164", "U+3164"),
        ("bit.ly/\u2800", "U+2800"),
        ("bit.ly/abc\ufe0f", "U+FE0F"),
        ("bit.ly/abc\u034f", "U+034F"),
        ("bit.ly/abc\ue000", "U+E000"),
        ("bit.ly/abc\u0378", "U+0378"),
        ("\u2764\u200b.ws/x y", "U+0020"),
        (f"{'x' * 64}.ly/x", "not a domain"),
        (f"{'ü' * 64}.ly/x", "not a domain"),
    ],
)
def test_text_that_is_not_a_bitlink_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidBitlink, match=re.escape(reason)):
        parse(text)


def test_a_reason_does_not_repeat_the_line() -> None:
    """The line may hold anything, a token included; whoever reports it bounds and escapes it."""
    for text in (
        "s3cret",
        "s3cret/x",
        "bit.ly/s3cret/x",
        "bit.ly/s3cret x",
        "s3cret:x@bit.ly/x",
        "bit.ly/" + "s3cret" * 500,
    ):
        with pytest.raises(InvalidBitlink) as refused:
            parse(text)
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("text", ["x", "a.", "https://a.", "{", "a.bc/", "%41", "1.", "- ", "•", "- [", "[1] "])
def test_counting_the_links_in_a_line_takes_time_that_grows_with_its_length(text: str) -> None:
    text *= 65_536 // len(text)
    began = time.process_time()
    for each in (text, text + "/", f"https://{text}", f"{{{text}", f"1. {text}"):
        links_in(each)
        is_bitlink(each)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("around", ["{}", '"{}"', "https://{}?utm=1"])
def test_the_length_of_a_name_is_limited(around: str) -> None:
    longest = "bit.ly/" + "x" * (MAX_CHARACTERS - len("bit.ly/"))
    assert parse(around.format(longest).removeprefix("https://")) == longest
    with pytest.raises(InvalidBitlink, match="longer"):
        parse(around.format(longest + "x"))


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("bit.ly/a", 1),
        ("see the page", 0),
        ("bit.ly/a bit.ly/b", 2),
        ("bit.ly/a,bit.ly/b;bit.ly/c|bit.ly/d", 3),
        ("https://bit.ly/ahttps://bit.ly/b", 2),
        ("bit.ly/abit.ly/b", 2),
        ("bit.ly/a?next=https://example.com/b", 1),
        ('{"link": "bit.ly/a"', 0),
        ('{"link": "bit.ly/a"}', 1),
        (' {"link": "bit.ly/a"}{"link": "bit.ly/b"}', 2),
        ("{}{}{}{}", 3),
    ],
)
def test_links_in_a_line_are_counted_up_to_three(text: str, links: int) -> None:
    assert links_in(text) == links


def test_for_python_a_bitlink_is_what_a_text_names_and_nothing_else_names_one() -> None:
    assert bitlink("https://Bit.ly/x?utm=1") == "bit.ly/x"
    assert (is_bitlink("https://Bit.ly/x?utm=1"), is_bitlink("x")) == (True, False)
    with pytest.raises(ValueError, match="no slash"):
        bitlink("x")
    for wrong in (None, b"bit.ly/x"):
        with pytest.raises(InvalidBitlink, match=f"must be text, not {type(wrong).__name__}"):
            bitlink(wrong)  # type: ignore[arg-type]


PIECES = st.one_of(
    st.sampled_from(
        [
            *("http://", "https://", "HTTPS://", "ftp://", "//", ":", "@", ":80"),
            *("bit.ly", "Bit.LY", "es.pn", "bücher.example", "İ.ly", "ẞ.de", "xn--bcher-kva.example", ".", "..", "-"),
            *("/", "\\", "+", "?", "#", "&", "%", "%%", "%2F", "%2e", "%2B", "%25", "%0A", "%20"),
            *(
                "%C3%A9",
                "%C3",
                "%A9",
                "%C2%A0",
                "%C2%85",
                "%E2%80%9D",
                "%E2%80%A8",
                "%EF%BB%BF",
                "%ED%A0%80",
                "%EF%BC%8F",
            ),
            *('"', "'", "`", "“", "”", "«", "»"),
            *(" ", "\t", "\r", "\n", "\v", "\f", "\x1c", "\x85", "\xa0", "\u2028", "\u2029", "\u3000"),
            *("- ", "• ", "•", "1. ", "1) ", "a. ", "[x] ", "→ "),
            *("\ufeff", "\u200b", "\u202e", "\x00", "\x1b", "\x7f", "\ud800", "\u0307"),
            *("x", "AbC", "é", "e\u0301", "日本", "🦡", "ﬀ", "Σ", "0", "_", "/x", "bit.ly/x", "bit.ly/x"),
        ]
    ),
    st.characters(),
)
NASTY = st.lists(PIECES, max_size=8).map("".join)
WITH_A_DOMAIN = st.builds("{}{}/{}".format, st.sampled_from(["", "https://", '"', " "]), st.just("Bit.ly"), NASTY)


@given(st.one_of(NASTY, WITH_A_DOMAIN, st.text()))
@example("bit.ly/x++/")
@example("bit.ly/%E2%80%9Dx%E2%80%9D")
@example("bit.ly/%25C3%25A9")
@example("bit.ly/%%C3%A9C3")
@example("bit.ly/%\u00e92F")
def test_parsing_any_text_gives_a_fixed_point_or_a_refusal(text: str) -> None:
    try:
        name = parse(text)
    except InvalidBitlink:
        return
    assert parse(name) == name
    domain, back_half = name.split("/")
    assert domain
    assert back_half
    assert domain == domain.lower()
    assert not any(character.isspace() for character in name)
    assert not {unicodedata.category(character) for character in name} & {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
    assert len(name.splitlines()) == 1
    assert len(name) <= MAX_CHARACTERS
    name.encode()


ALPHABET = st.text("abcXYZ019-_", min_size=1, max_size=20)


@given(
    ALPHABET,
    st.sampled_from(["", "http://", "HTTPS://"]),
    st.sampled_from(["", "/", "+", "+/", "?a=/b", "#c", "/?a"]),
    st.sampled_from(["{}", '"{}"', " {}\r\n", "\ufeff{}", "“{}”", "- {}", "• {}", "1. {}"]),
)
def test_the_back_half_keeps_its_case_under_any_decoration(back_half: str, scheme: str, tail: str, around: str) -> None:
    assert parse(around.format(f"{scheme}Es.PN/{back_half}{tail}")) == f"es.pn/{back_half}"
