"""The paper's numbers: Li & Liang, ACL 2021. GPT-2 medium and BART-large, all data, full test sets."""

# Table 2: for E2E BLEU, NIST, METEOR, ROUGE-L, CIDEr; for WebNLG BLEU, METEOR and TER of seen, unseen and all
# categories; for DART BLEU, METEOR, TER. METEOR and TER of the latter two are given there as fractions.
TABLE2 = {
    "e2e-full": "68.8 8.71 46.1 71.1 2.43",
    "e2e-top2": "68.1 8.59 46.0 70.8 2.41",
    "e2e-adapter-3": "68.9 8.71 46.1 71.3 2.47",
    "e2e-adapter-0.1": "66.3 8.41 45.0 69.8 2.40",
    "e2e-prefix": "70.3 8.82 46.3 72.1 2.46",
    "webnlg-full": "64.7 26.7 45.7 46 30 38 33 78 54",
    "webnlg-top2": "53.6 18.9 36.0 38 23 31 49 99 72",
    "webnlg-adapter-3": "60.5 47.9 54.8 43 38 41 35 46 39",
    "webnlg-adapter-0.1": "54.5 45.1 50.2 39 36 38 40 46 43",
    "webnlg-prefix": "62.9 45.3 55.0 44 37 41 35 51 42",
    "dart-full": "46.2 39 46",
    "dart-top2": "41.0 34 56",
    "dart-adapter-3": "45.2 38 46",
    "dart-adapter-0.1": "42.4 36 48",
    "dart-prefix": "46.4 38 46",
}
# Tables 3 and 4: ROUGE-1, ROUGE-2, ROUGE-L; prefix-small is 0.1% there, prefix-large 2%.
TABLE3 = {
    "full": "45.14 22.27 37.25",
    "prefix-large": "43.80 20.93 36.05",
    "prefix-small": "42.92 20.03 35.05",
}
TABLE4 = {
    "news-to-sports-full": "38.15 15.51 30.26",
    "news-to-sports-prefix": "39.23 16.74 31.51",
    "within-news-full": "39.20 16.35 31.15",
    "within-news-prefix": "39.41 16.87 31.47",
}
# Table 5, as Table 2 for E2E. Its one prefix is Table 2's, of length 5.
TABLE5 = {
    "embedding-1": "48.1 3.33 32.1 60.2 1.10",
    "embedding-10": "62.2 6.70 38.6 66.4 1.75",
    "embedding-20": "61.9 7.11 39.3 65.6 1.85",
    "infix-1": "67.9 8.63 45.8 69.4 2.42",
    "infix-10": "67.2 8.48 45.8 69.9 2.40",
    "infix-20": "66.7 8.47 45.8 70.0 2.42",
}
GPT2_MEDIUM = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 1024, "n_layer": 24, "n_head": 16}
# What Table 2 calls 0.1% and 3% of GPT-2 medium, in trained and stored numbers: (method, |P|, inner width).
NUMBERS = {
    "prefix, length 5": (("prefix", 5, 6), "245,760"),
    "last two blocks": (("top2", 0, 6), "25.19M"),
    "adapter, inner width 6": (("adapter", 0, 6), "0.37M"),
    "adapter, inner width 224": (("adapter", 0, 224), "11.09M"),
}
