# ruff: noqa: SIM905 (a text reads better than 256 quoted words)
"""The 256 words that the mock engine knows."""

WORDS = tuple(
    """
    a able about above across after again air all along also an anchor and any are as at away back bay be bell
    below beside best between blue boat both bow bright bring but by calm came can captain care carry cast chart
    clear cliff close cloud coast cold come crew cross current dark dawn day deck deep did dock done down drift
    each early east edge even ever far fast few find first fish flag float flow fog follow for found four free
    from full gale gave give go gold good grew gull had half hand harbour has have he held helm her here high
    him his hold home hope horizon hull if in into is island it its keel keep knot know land lantern last late
    lay lead left light like line list little long look low made mail many map mark mast may men mild moon more
    most mud much must name near net never new next night no north not now oar of off old on once one open or
    other our out over own past path pier place plan port pull quay rain reach rest rise river rock rode rope
    round row rudder run safe sail said salt same sand saw sea see set shall ship shore side silver sky slow so
    some song soon sound south star stay steady steer stern still stone storm strong sun swell swift tell than
    that the their them then there they this three through tide time to told too took top toward true turn two
    under up upon us very view wait wake was watch water wave way we well went were west what wheel when which
    white who wide will wind with wood word work yard year yes you your
    """.split()
)[:256]
