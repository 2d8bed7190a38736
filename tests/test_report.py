"""The report: one page that asks the network for nothing, says what the tables say, and can be used by anybody."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from conftest import tiny
from PIL import Image
from playwright.sync_api import sync_playwright
from test_figures import CONTENT, judged
from test_params import command
from test_tables_claims import intervention_cell, report

from cxlib import runtime
from cxlib.explainers import resized
from cxlib.metrics.baselines import Blur
from cxlib.review import exploration
from cxlib.review.ledger import claims, tables
from cxlib.review.report import page
from cxlib.review.report.page import explorer, forest, sections

ROOT = Path(__file__).parents[1]
REAL = ROOT / "plots" / "report.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browsing = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the page with")
LARGEST = 8_000_000
SHARES = (0.1, 0.3, 0.6)
#: Figures that not every profile has.
MORE = ("synthbirds", "figure_5", "figure_5_imagenet")


def explored():
    """What the stage `explore` writes, of a tiny network on noise."""
    network, generator = tiny(pooled=False), torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    probabilities = network(images).softmax(-1)
    classes = probabilities.topk(3).indices
    axes = ("gradcam", "xgradcam"), ("original", "weighted")
    found = exploration.explore(network, images, classes, *axes, network.features[4], SHARES, Blur(5, 1.0), 50)
    names = np.array(["Heron_Ashen", "Heron_Marsh", "Duck_Mere", "Duck_Fawn", "Finch_Barred", "Finch_Gilded"])
    return {
        **{f"maps_{name}": maps.numpy() for name, maps in zip(axes[0], found.maps)},
        "behind": found.behind.numpy(),
        "ends": found.ends.numpy(),
        "pictures": found.pictures.numpy(),
        "explainers": np.array(axes[0]),
        "contrasts": np.array(axes[1]),
        "shares": np.array(SHARES),
        "names": names[classes],
        "labels": names[:3],
        "probabilities": probabilities.gather(1, classes).numpy(),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder as the stages leave it: small tables, small figures, and what was explored."""
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    tested = tables.tested({"a": report([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], [0, 2])}, 0.1)
    made = {
        "claims": judged(),
        "networks": tested,
        "repainting": tables.repainting({"a": intervention_cell()}, rng),
        **{name: CONTENT[name](rng) for name in page.TABLES if name in CONTENT},
    }
    assert made.keys() == set(page.TABLES)
    for name, table in made.items():
        runtime.write_csv(folder / f"{name}.csv", table)
    (folder / "pictures").mkdir()
    for name in (*page.FIGURES, *MORE, "figure_7"):
        Image.new("RGB", (900, 300), "white").save(folder / "pictures" / f"{name}.webp")
    runtime.write_arrays(folder / "explored" / "mine.npz", **explored())
    (folder / "params.yaml").write_text("seed: 0\nname: </script><b>\n")
    return folder


def build(results, out="report.html", **changes):
    options = {"networks": "mine", "explored": results / "explored", "results": results,
               "pictures": results / "pictures", "settings": results / "params.yaml", "out": results / out}  # fmt: skip
    words = [word for name, value in (options | changes).items() for word in (f"--{name}", str(value))]
    words += [word for name in page.FIGURES for word in ("--figures", name)]
    words += [word for name in MORE for word in ("--more", name)]
    return CliRunner().invoke(command("stages/report.py"), words)


@pytest.fixture(scope="module")
def written(results):
    done = build(results)
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return results / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """The page in a window of its own, what it asked for, and what it complained of."""

    def __init__(self, browser, path, width=1280, scheme="light"):
        viewport = {"width": width, "height": 900}
        self.page = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce").new_page()
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.goto(path.as_uri())
        self.painted()

    def painted(self, after=0):
        self.page.wait_for_function(f"Number(document.getElementById('explore').dataset.painted) > {after}")

    def turn(self):
        return int(self.page.get_attribute("#explore", "data-painted"))

    def all_charts(self):
        for place in self.page.query_selector_all("[data-chart]"):
            place.scroll_into_view_if_needed()
            self.page.wait_for_function("place => place.dataset.drawn", arg=place)

    def pixels(self, name="map-a"):
        """The colours of a canvas, (H, W, 3)."""
        script = """id => { const c = document.getElementById(id);
            return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"""
        height, width, values = self.page.evaluate(script, name)
        return np.array(values).reshape(height, width, 4)[..., :3]

    def choose(self, selector, value):
        """Another choice of the explorer, by its value or its text; returns when the pictures are new."""
        before = self.turn()
        self.page.select_option(selector, value)
        self.painted(before)

    def slide(self, percent):
        before = self.turn()
        self.page.fill("#share", str(percent))
        self.painted(before)

    def overflow(self):
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def close(self):
        self.page.context.close()


@pytest.fixture
def visit(browser, written):
    opened = Visit(browser, written)
    yield opened
    assert opened.errors == []
    opened.close()


# --- the file ---------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes_and_few_of_them(results, written):
    assert build(results, "again.html").exit_code == 0
    assert (results / "again.html").read_bytes() == written.read_bytes()
    assert written.stat().st_size < LARGEST


def test_nothing_that_the_page_loads_lies_elsewhere(written):
    html = written.read_text()
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S)
    loaded = re.findall(r"""\s(?:src|href|action|data|poster|srcset)\s*=\s*["']?([^"'\s>]+)""", markup)
    assert loaded
    assert [value for value in loaded if not value.startswith(("data:", "#"))] == []
    assert "default-src 'none'" in html  # and a browser would refuse it
    assert not re.search(r"@import|url\(", (ROOT / "cxlib/review/report/page/style.css").read_text())


def test_dvc_yaml_names_the_tables_of_the_sections(results):
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]["deps"]
    assert {dep for dep in deps if dep.startswith("plots/")} == {f"plots/{name}.csv" for name in page.TABLES}
    assert {"data/explored", "data/pictures", "params.yaml"} <= set(deps)


def test_contact_sheets_come_first_and_figures_of_one_kind_behind_each_other(written, results):
    html = written.read_text()
    heads = re.findall(r"<h3>([^<]*)</h3>", html[html.index('id="figures"') : html.index('id="reading"')])
    five = heads.index("Figure 5: a Vision Transformer")
    assert heads[0] == "What the species look like"
    assert heads[five + 1] == "Figure 5: a Vision Transformer (imagenet)"
    assert len(heads) == len(sections.PICTURES) + 2
    assert "Test images of synthbirds" in html
    # What no stage writes any more is gone, for the stage depends on the whole folder.
    kept = {file.stem for file in (results / "pictures").iterdir()}
    assert kept == {*page.FIGURES, *MORE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: pd.DataFrame({"a": [1]}).to_csv(results / "table1.csv", index=False), "lacks"),
        (lambda results: (results / "claims.csv").unlink(), "claims.csv"),
        (lambda results: (results / "pictures" / "figure_3.webp").unlink(), "figure_3.webp"),
        (lambda results: (results / "explored" / "mine.npz").write_bytes(b"no"), "mine.npz"),
    ],
)
def test_what_is_no_input_ends_in_one_line_and_leaves_the_old_page(results, tmp_path, change, message):
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    (folder / "report.html").write_text("old")
    change(folder)
    done = build(folder)
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert message in done.output
    assert (folder / "report.html").read_text() == "old"


def test_a_profile_without_painted_birds_has_a_page_without_their_numbers(results, tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    for name in ("intervention", "repainting", "leaderboard"):
        table = pd.read_csv(folder / f"{name}.csv")
        runtime.write_csv(folder / f"{name}.csv", table.iloc[:0])
    assert build(folder).exit_code == 0
    html = (folder / "report.html").read_text()
    assert html.count("This run has none of it.") == 3
    assert 'data-chart="repainting"' not in html
    assert 'data-chart="table1"' in html


# --- what it says -----------------------------------------------------------------------------------------------


def test_statements_have_the_headlines_verdicts_and_every_margin_once():
    ledger = judged()
    headlines, found = claims.headlines(ledger), forest.statements(ledger)
    assert [statement.name for statement in found] == list(headlines)
    assert sum(len(statement.margins) for statement in found) == len(ledger)
    for statement in found:
        assert (statement.verdict in (claims.HOLDS, claims.IDENTITY)) == headlines[statement.name]["holds"]
        assert statement.verdict in forest.VERDICTS
        for margin in statement.margins:
            row = ledger[(ledger["margin"] == margin.name) & (ledger["network"] == margin.network)].iloc[0]
            largest = max(np.abs([margin.mean, margin.low, margin.high, margin.bound, margin.published or 0]))
            assert (margin.mean, margin.low, margin.high) == (row["mean"], row["low"], row["high"])
            assert margin.at["mean"] == pytest.approx(100 * margin.mean / (largest or 1), abs=0.051)
            assert -100 <= margin.at["low"] <= margin.at["mean"] <= margin.at["high"] <= 100
    assert sum(forest.counts(found).values()) == len(found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p_t_weighted_minus_original", "p_t weighted minus original"),
        ("the_same_where_p_1_and_p_2_leave_0.1", "the same where p_1 and p_2 leave 0.1"),
        ("gain_at_area_10_percent", "gain at area 10 percent"),
        ("rank_correlation_of_norm_and_logit", "rank correlation of norm and logit"),
        ("t1_equal_kept", "t1 equal kept"),
        ("y_t", "y_t"),
        ("linear_approximation", "Linear approximation"),
    ],
)
def test_names_are_printed_without_underscores_but_for_symbols(name, expected):
    assert sections.printed_name(name) == expected


def test_symbols_have_subscripts_and_what_is_not_ours_is_escaped():
    assert page.symbols("p_t and t1 <b> `found`") == ("p<sub>t</sub> and t<sub>1</sub> &lt;b&gt; <code>found</code>")


@pytest.mark.parametrize(
    ("value", "sign", "expected"),
    [(0.05, True, "+0.050"), (-0.25, False, "−0.250"), (4e-8, True, "+4.0e-08"), (0.0, True, "+0.000")],
)
def test_numbers_have_three_decimals_unless_these_say_nothing(value, sign, expected):
    assert forest.number(value, sign) == expected


def test_what_was_explored_keeps_its_numbers_from_no_pixel_to_all_of_them():
    cell = explored()
    packed = json.loads(json.dumps(explorer.packed(cell)))
    answers = np.array(packed["answers"])
    assert packed["shares"] == [0, *SHARES, 1]
    assert answers[..., 1:-1, :] == pytest.approx(cell["behind"], abs=5.1e-5)
    for end, place in ((0, 0), (1, -1)):
        expected = np.broadcast_to(cell["ends"][:, end, None, None, None], answers[..., place, :].shape)
        assert answers[..., place, :] == pytest.approx(expected, abs=5.1e-5)
    assert packed["names"][0][0] == str(cell["names"][0, 0]).replace("_", " ")


# --- in a browser -----------------------------------------------------------------------------------------------


@browsing
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_anybody_can_use_it_anywhere(browser, written, width, scheme):
    """Nothing leaves the page, nothing fails, nothing sticks out, and no rule of accessibility is broken gravely."""
    visit = Visit(browser, written, width, scheme)
    visit.all_charts()
    visit.page.click("#unfold")
    visit.page.click("[data-table=repainting] summary")
    assert visit.overflow() <= 0
    violations = Axe().run(visit.page).response["violations"]
    grave = [(rule["id"], rule["nodes"][0]["html"]) for rule in violations if rule["impact"] in ("serious", "critical")]
    assert grave == []
    assert visit.errors == []
    assert [url[:80] for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [url for url in visit.requests if url.startswith("file:")] == [written.as_uri()]
    visit.close()


@browsing
def test_every_choice_of_the_explorer_changes_the_picture(visit):
    seen = [visit.pixels()]
    for selector, value in (
        ("#explainer", "1"),
        ("#contrast", "0"),
        ("#first", "2"),
        ("#view", "seen"),
    ):
        visit.choose(selector, value)
        seen.append(visit.pixels())
    before = visit.turn()
    visit.page.check("#images label:nth-child(2) input")
    visit.painted(before)
    seen.append(visit.pixels())
    for one, other in pairwise(seen):
        assert (one != other).any()


@browsing
def test_a_class_against_itself_changes_places_with_the_other(visit):
    names = visit.page.inner_text("#name-a"), visit.page.inner_text("#name-b")
    visit.choose("#first", "1")
    assert (visit.page.inner_text("#name-b"), visit.page.inner_text("#name-a")) == names


@browsing
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_pixels_that_stay_and_the_numbers_are_those_that_were_measured(visit, share):
    """The grey pixels of the page are those that the stage hid, and the read-out is the network's answer there."""
    cell, place = explored(), SHARES.index(share)
    visit.choose("#explainer", "1")
    visit.slide(round(100 * share))
    shown = visit.pixels()
    fine = resized(torch.from_numpy(cell["maps_xgradcam"][:1, 1, 0])[None].float(), (16, 16))[0]
    kept = exploration.best(fine, [share])[0, 0].numpy()
    grey = (shown == shown[..., :1]).all(-1)
    assert (grey[~kept]).mean() > 0.98  # rounding may turn a pixel around
    assert (grey[kept]).mean() < 0.02
    behind = cell["behind"][0, 1, 1, :2, place]  # of the maps of t1 and t2: the logits of the classes
    balance = 1 / (1 + np.exp(behind[:, 1] - behind[:, 0]))
    whole = 1 / (1 + np.exp(cell["ends"][0, 1, 1] - cell["ends"][0, 1, 0]))
    said = visit.page.eval_on_selector_all("#read-out b", "all => all.map(one => one.textContent)")
    assert said == [f"{value:.2f}" for value in (*balance, whole)]
    assert visit.page.inner_text("#share-text") == f"{round(100 * share)} %"


@browsing
def test_between_two_measured_shares_the_read_out_says_about(visit):
    visit.slide(45)
    said = visit.page.eval_on_selector_all("#read-out b", "all => all.map(one => one.textContent)")
    assert [text.startswith("about ") for text in said] == [True, True, False]


@browsing
def test_what_the_network_saw_is_blurred_where_pixels_do_not_stay(visit):
    visit.choose("#view", "seen")
    visit.slide(100)
    whole = visit.pixels()
    visit.slide(30)
    changed = (visit.pixels() != whole).any(-1).mean()
    assert 0.5 < changed <= 0.7  # JPEG may leave a pixel as it was


@browsing
def test_the_slider_is_moved_by_keys(visit):
    before = visit.turn()
    visit.page.focus("#share")
    visit.page.keyboard.press("ArrowRight")
    visit.painted(before)
    assert visit.page.inner_text("#share-text") == "21 %"


@browsing
def test_a_verdict_a_word_and_a_network_leave_the_statements_that_have_them(visit):
    shown = ".statement:not([hidden])"
    everything = len(visit.page.query_selector_all(shown))
    tile = visit.page.query_selector(".tile.identity")
    tile.click()
    assert tile.get_attribute("aria-pressed") == "true"
    verdicts = visit.page.eval_on_selector_all(shown, "all => all.map(one => one.dataset.verdict)")
    assert set(verdicts) == {"identity"}
    assert visit.page.inner_text("#shown") == f"{len(verdicts)} of {everything} statements"
    tile.click()
    visit.page.fill("#search", "extremely SIMILAR")
    assert visit.page.eval_on_selector_all(shown, "all => all.map(one => one.id)") == ["3.1_mean"]
    visit.page.fill("#search", "no such words")
    assert visit.page.is_visible("#none")
    visit.page.fill("#search", "")
    visit.page.select_option("#network", "other")
    assert visit.page.eval_on_selector_all(shown, "all => all.map(one => one.id)") == ["claim_2"]


@browsing
def test_the_switch_turns_the_light_off_and_the_charts_follow(visit):
    visit.all_charts()
    label = "[data-chart] .role-axis-label text"
    colours = [visit.page.eval_on_selector(label, "one => one.getAttribute('fill')")]
    grounds = [visit.page.evaluate("getComputedStyle(document.body).backgroundColor")]
    visit.page.click("#theme")
    visit.page.wait_for_function(
        f"before => document.querySelector('{label}')?.getAttribute('fill') !== before", arg=colours[0]
    )
    grounds.append(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    brightness = [sum(map(int, re.findall(r"\d+", ground)[:3])) for ground in grounds]
    assert brightness[0] > 600 > 150 > brightness[1]


@browsing
def test_a_chart_shows_the_rows_that_are_chosen(visit, results):
    visit.all_charts()
    table = pd.read_csv(results / "intervention.csv")
    table = table[table["contrast"] != "perfect"]
    chart = visit.page.query_selector("[data-chart=intervention]")
    for quantity in ("rank", "sign"):
        chart.query_selector("select").select_option(label=quantity)
        n_rows = int((table["quantity"] == quantity).sum())
        script = "([place, n]) => place.querySelectorAll('.layer_1_marks path').length === n"
        visit.page.wait_for_function(script, arg=[chart, n_rows])


@browsing
def test_the_numbers_behind_a_chart_are_the_table_and_can_be_sorted(visit, results):
    table = pd.read_csv(results / "repainting.csv")
    visit.page.click("[data-table=repainting] summary")
    cells = "[data-table=repainting] tbody tr td:nth-child(5)"
    script = "all => all.map(one => Number(one.textContent))"
    visit.page.wait_for_selector(cells)
    assert visit.page.eval_on_selector_all(cells, script) == pytest.approx(table["value"].tolist(), rel=1e-3)
    visit.page.click("[data-table=repainting] th:nth-child(5) button")
    assert visit.page.eval_on_selector_all(cells, script) == pytest.approx(sorted(table["value"]), rel=1e-3)


@browsing
def test_without_scripts_the_ledger_and_the_figures_stand_there(browser, written):
    page_ = browser.new_context(java_script_enabled=False).new_page()
    page_.goto(written.as_uri())
    assert page_.is_visible(".statement")
    assert page_.is_visible("img.instead")
    assert not page_.is_visible("#explore")
    page_.context.close()


@browsing
@pytest.mark.skipif(not REAL.is_file(), reason="the pipeline has not run: there is no plots/report.html")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_pipelines_own_page_is_like_that_too(browser, width):
    assert REAL.stat().st_size < LARGEST
    visit = Visit(browser, REAL, width)
    visit.all_charts()
    assert visit.overflow() <= 0
    assert visit.errors == []
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:"))] == [REAL.as_uri()]
    visit.close()
