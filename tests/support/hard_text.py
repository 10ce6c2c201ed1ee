"""Lines that tokenizers get wrong: scripts, emoji, code, whitespace, control characters, normal forms."""

from __future__ import annotations

import random
import unicodedata

SCRIPTS = {
    "latin": "The quick brown fox jumps over the lazy dog; naïve café Ångström straße ﬁnancial ½ №5 İstanbul",
    "chinese": "人工智能正在改變世界，但是我們仍然需要理解它。龘靐齉爩 简体中文與繁體字 ㊙️ 「引號」、。！？",
    "japanese": "東京タワーは高いです。ﾊﾝｶｸ カタカナとひらがな、が か\u3099 ゔ ㌔㍍ 々〆〇",
    "korean": "안녕하세요 세계 \u1112\u1161\u11ab\u1100\u1173\u11af 한글 자모 ㅋㅋㅋ",
    "arabic": "السَّلَامُ عَلَيْكُمْ ١٢٣٤٥ ﷺ لا إله \u202bעברית\u202c שָׁלוֹם",
    "indic": "नमस्ते दुनिया क्षत्रिय ज्ञान தமிழ் తెలుగు ไทยภาษา ພາສາລາວ မြန်မာ ខ្មែរ བོད་སྐད་",
    "greek": "Ελληνικά ὕβρις ΣΊΣΥΦΟΣ Русский Ёлка українська ქართული Հայերեն",
    "emoji": "👩🏽‍🚀 👨‍👩‍👧‍👦 🏴󠁧󠁢󠁳󠁣󠁴󠁿 🇨🇭🇯🇵 ❤️‍🔥 👍🏿 1️⃣ ☎︎ ☎️ 🫱🏻‍🫲🏿 🤷🏾‍♂️",
    "rare": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𓀀𓂀 𐍈 𠮷野家 \U0010ffff\U000e0041 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "code": "def f(x: int) -> int:\n\treturn x**2 if x!=0 else -1 # n'est\n\n  for (i=0;i<9;++i){a[i]=b->c;}",
    "markup": "<div class='x'>&nbsp;&amp;</div> {{ jinja }} [link](http://a.b/c?d=e&f=%20) $\\alpha$ ```py",
    "numbers": "3.14159 1,234,567.89 0xDEADBEEF 1e-10 ١٢٣ ⅷ ²³ 2026-11-22T20:18:00Z +41 44 123 45 0007",
    "contractions": "don't can't I'm you've they'd we'll it's DON'T ’twas o’clock rock'n'roll 'tis",
}  # fmt: skip
"""Text of each kind, from which lines are put together."""

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<pad>", "[CLS]", "[SEP]",
    "[MASK]", "[PAD]", "[UNK]", "<0x0A>", "<0xFF>", "▁", "##ing", "Ġ", "Ċ", "<|im_start", "|>", "</", "<|",
)  # fmt: skip
"""Special tokens of all families, whole and broken, and characters that tokenizers use for themselves."""

SPACES = (
    " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\u00a0", "\u2003", "\u3000", "\u200b",
    "\u2028", "\u2029", "\u0085", "\ufeff", "\u200d", "\u00ad", " \t ", "\n\n\n", " " * 17, "\t" * 5, " \n ",
)  # fmt: skip
"""Whitespace and what looks like it."""

CONTROLS = "\x00\x01\x07\x08\x1b\x1f\x7f\x80\x9f\ufffd\ufffe\uffff\u202e\u2066\u2069\u061c"


def hard_lines(count: int = 10_000, seed: int = 3) -> list[str]:
    """``count`` lines, the same for the same seed."""
    chosen = random.Random(seed)
    words = {kind: text.split(" ") for kind, text in SCRIPTS.items()}
    lines = ["", " ", "\n", *SCRIPTS.values(), *SPECIAL, *SPACES, "a" * 5000, "漢" * 700, "ab" * 3000 + "\n"]
    return [*lines, *(_line(chosen, words) for _ in range(count - len(lines)))]


def _line(chosen: random.Random, words: dict[str, list[str]]) -> str:
    parts = []
    kinds = chosen.sample(sorted(words), chosen.randint(1, 3))
    for _ in range(chosen.randint(1, 24)):
        draw = chosen.random()
        if draw < 0.66:
            parts.append(chosen.choice(words[chosen.choice(kinds)]))
        elif draw < 0.74:
            parts.append(chosen.choice(SPECIAL))
        elif draw < 0.80:
            parts.append(chosen.choice(CONTROLS))
        elif draw < 0.86:
            parts.append(_character(chosen))
        elif draw < 0.92:
            parts.append(str(chosen.randint(0, 10 ** chosen.randint(1, 20))))
        elif draw < 0.96:
            parts.append(
                "".join(chosen.choices("abcdefghijklmnopqrstuvwxyzABCÀÉ-_'", k=chosen.randint(1, 60)))
            )
        else:
            parts.append(chosen.choice("aé漢 .!-=_") * chosen.randint(2, 80))
        if chosen.random() < 0.75:
            parts.append(" " if chosen.random() < 0.7 else chosen.choice(SPACES))
    text = "".join(parts)
    form = chosen.choice(("", "", "NFC", "NFD", "NFKC", "NFKD"))
    return unicodedata.normalize(form, text) if form else text


def _character(chosen: random.Random) -> str:
    """Any character that is no surrogate."""
    while True:
        code = chosen.randrange(chosen.choice((0x300, 0x3000, 0x10000, 0x110000)))
        if not 0xD800 <= code < 0xE000:
            return chr(code)
