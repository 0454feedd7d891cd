"""The page in a real browser: one draws by mouse, finger or keyboard, and it answers, from this machine alone."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import dist
from typing import Any

import pytest

from .figures import CASES, drawn

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
playwright.expect.set_options(timeout=600_000)
expect = playwright.expect

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


@contextmanager
def opened(browser: Any, address: str, heard: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
    """The page; afterwards it must have complained of nothing else than ``heard``, and asked nobody but its server."""
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, "reduced_motion": "reduce", **options})
    context.set_default_timeout(600_000)  # a busy machine takes its time
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)
    tab.locator("main > section:visible").wait_for()
    yield tab
    context.close()
    assert [text for text in said if not any(part in text for part in heard)] == []
    assert [url for url in asked if not url.startswith(address.split("#")[0])] == []
    assert len(asked) >= 9


@pytest.fixture(scope="module")
def address(small: Any, served: Any) -> str:
    return served(small)


def canvas(tab: Any, name: str | int) -> Any:
    """That of a character, or of the new drawing."""
    return tab.get_by_label(name if isinstance(name, str) else f"Character {name}", exact=True).first


def points(tab: Any, name: str | int, drawing: Any) -> Any:
    """A drawing in pixels of the window."""
    where = canvas(tab, name)
    where.scroll_into_view_if_needed()
    box = where.bounding_box()
    return [[(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke] for stroke in drawing]


def by_mouse(tab: Any, name: str | int, drawing: Any) -> None:
    for stroke in points(tab, name, drawing):
        tab.mouse.move(*stroke[0])
        tab.mouse.down()
        for point in stroke[1:]:
            tab.mouse.move(*point)
        tab.mouse.up()


def by_touch(tab: Any, name: str | int, drawing: Any) -> None:
    device = tab.context.new_cdp_session(tab)
    for stroke in points(tab, name, drawing):
        for kind, (x, y) in [("touchStart", stroke[0]), *(("touchMove", point) for point in stroke[1:])]:
            device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        device.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    device.detach()


QUERY = "A new drawing"
LINE, HOOK = [[(0.1, 0.2), (0.5, 0.5), (0.8, 0.7)]], [[(0.2, 0.1), (0.2, 0.9), (0.7, 0.9)], [(0.7, 0.2)]]


AT_REST = """() => {
    const seen = (element) => element.checkVisibility();
    const [answer] = [...document.querySelectorAll("#answer, #functions")].filter(seen);
    const [verdict] = [...document.querySelectorAll("#characters .verdict, #functions .verdict")].filter(seen);
    const heard = document.getElementById("heard").innerText;
    return answer?.ariaBusy === "false" && verdict && heard.includes(verdict.innerText) && heard;
}"""
"""What is heard, once it says what is seen and no answer is awaited: all at one moment, since answers may follow each
other quickly."""
ASKED = "() => performance.getEntriesByType('resource').filter((one) => one.name.includes('/api/characters')).length"


def told(tab: Any) -> str:
    """What those hear who do not see the page, when it has come to rest."""
    return tab.wait_for_function(AT_REST).json_value()


def drawn_on(tab: Any) -> dict[str, Any]:
    """Strokes by mouse on two characters and on the new drawing, and the question that came of them."""
    by_mouse(tab, 1, LINE)
    by_mouse(tab, 2, HOOK)
    with tab.expect_response("**/api/characters") as answered:
        by_mouse(tab, QUERY, HOOK)
    told(tab)
    return answered.value.request.post_data_json


def widths(tab: Any, kind: str) -> list[float]:
    return tab.locator(f"#bars .{kind}").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")


@pytest.mark.parametrize("by", [by_mouse, by_touch])
def test_drawing_leads_to_an_answer(browser: Any, address: str, by: Any) -> None:
    with opened(browser, address, **(PHONE if by is by_touch else {})) as tab:
        assert tab.locator("#verdict").inner_text().startswith("Draw at least two characters")
        by(tab, 1, LINE)
        by(tab, 2, HOOK)
        assert tab.locator("#verdict").inner_text().startswith("Now draw one of them again")
        assert tab.locator("#bars li").count() == 0
        by(tab, QUERY, HOOK)
        assert re.fullmatch(r"Character [12], \d+ % after 1 step\. Before: \d+ %\.", told(tab))
        assert sum(widths(tab, "after")) == pytest.approx(100, abs=0.1)
        assert sum(widths(tab, "before")) == pytest.approx(100, abs=0.1)
        assert tab.locator("#bars li.first").count() == 1
        assert tab.locator("#loss circle").count() == 2
        ink = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 200)"
        assert all(tab.locator(f"{where} canvas").nth(0).evaluate(ink) for where in ("#bars", "#cards", ".sees"))


def test_what_is_sent_is_what_was_drawn(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        sent = drawn_on(tab)
        assert sent["steps"] == 1
        assert [len(examples) for examples in sent["characters"]] == [1, 1]
        flat = [point for stroke in sent["characters"][0][0] for point in stroke]
        expected = [point for stroke in LINE for point in stroke]
        assert [value for point in flat for value in point] == pytest.approx(
            [value for point in expected for value in point], abs=0.02
        )


def test_a_line_that_leaves_the_canvas_ends_at_its_edge(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        by_mouse(tab, 1, LINE)
        by_mouse(tab, 2, [[(0.5, 0.5), (1.4, 0.5)]])
        with tab.expect_response("**/api/characters") as answered:
            by_mouse(tab, QUERY, LINE)
        assert answered.value.status == 200
        assert answered.value.request.post_data_json["characters"][1][0][0][-1] == [1, pytest.approx(0.5, abs=0.02)]


def test_the_keyboard_alone_draws_and_gets_an_answer(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:

        def until(label: str) -> None:
            for _ in range(40):
                tab.keyboard.press("Tab")
                if tab.evaluate("document.activeElement.getAttribute('aria-label')") == label:
                    return
            raise AssertionError(f"Tab does not lead to {label}")

        for number, ways in ((1, "ArrowRight"), (2, "ArrowDown")):
            until(f"Character {number}")
            tab.keyboard.press("Space")
            for _ in range(6):
                tab.keyboard.press(ways)
            tab.keyboard.press("Space")
        until(QUERY)
        for _ in range(3):
            tab.keyboard.press("Shift+ArrowLeft")
        tab.keyboard.press("Space")
        expect(tab.locator("#heard")).to_have_text("Pen down")
        with tab.expect_response("**/api/characters") as answered:
            for _ in range(5):
                tab.keyboard.press("ArrowUp")
        told(tab)
        tab.keyboard.press("Space")
        expect(tab.locator("#heard")).to_have_text("Pen up, 1 stroke")
        assert answered.value.request.post_data_json["drawing"][0][0] == [pytest.approx(0.47), pytest.approx(0.5)]
        tab.keyboard.press("Backspace")
        assert tab.locator("#verdict").inner_text().startswith("Now draw one of them again")
        tab.keyboard.press("Shift+Tab")
        assert tab.locator(":focus-visible").count() == 1


def test_backspace_takes_back_a_stroke_and_escape_all(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        drawn_on(tab)
        with tab.expect_request("**/api/characters") as asked:
            tab.keyboard.press("Backspace")
        assert len(asked.value.post_data_json["drawing"]) == 1
        tab.keyboard.press("Escape")
        assert tab.locator("#bars li").count() == 0


def test_the_slider_sets_the_steps(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        drawn_on(tab)
        slider = tab.get_by_label("Gradient steps").first
        slider.press("End")
        expect(tab.locator("#loss circle")).to_have_count(11)
        assert slider.get_attribute("aria-valuetext") == tab.locator("#steps-told").inner_text() == "10 steps"
        slider.press("Home")
        expect(tab.locator("#loss circle")).to_have_count(1)
        assert widths(tab, "before") == widths(tab, "after")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_show_me_fills_all_canvases_and_asks(browser: Any, address: str, motion: str) -> None:
    with opened(browser, address, reduced_motion=motion) as tab:
        tab.locator("#count label", has_text="5").click()
        tab.get_by_role("button", name="Show me").click()
        if motion == "no-preference":  # asks while it draws
            tab.wait_for_function(f"() => ({ASKED})() > 1")
        told(tab)
        expect(tab.locator("#bars li")).to_have_count(5)
        if motion == "reduce":
            assert tab.evaluate(ASKED) == 1


def test_fewer_characters_and_further_examples(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        assert tab.locator("#cards .pad:visible").count() == 3
        drawn_on(tab)
        tab.get_by_role("button", name="Draw another example of character 2").click()
        assert tab.locator("#cards .kept").nth(1).inner_text() == "1 +"
        with tab.expect_request("**/api/characters") as asked:
            by_mouse(tab, 2, LINE)
        assert [len(examples) for examples in asked.value.post_data_json["characters"]] == [1, 2]
        tab.get_by_role("button", name="Clear character 2").click()
        assert tab.locator("#verdict").inner_text().startswith("Draw at least two")
        tab.get_by_role("button", name="Clear all").click()
        assert tab.locator("#cards .kept").nth(1).inner_text() == ""


def test_only_the_newest_drawing_counts(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        held = []
        tab.route("**/api/characters", lambda route: held.append(route))
        by_mouse(tab, 1, LINE)
        by_mouse(tab, 2, HOOK)
        with tab.expect_request("**/api/characters"):
            by_mouse(tab, QUERY, LINE)
        by_mouse(tab, QUERY, HOOK)
        assert len(held) == 1, "one question at a time"
        with tab.expect_request("**/api/characters") as asked:
            held.pop().fulfill(json=ANSWER)
        expect(tab.locator("#bars li")).to_have_count(2)
        assert len(asked.value.post_data_json["drawing"]) == 3, "the next is about the drawing as it is now"
        tab.get_by_role("button", name="Clear the new drawing").click()
        tab.evaluate(NOTE_VERDICTS)
        held.pop().fulfill(json={**ANSWER, "after": [1, 0]})
        with tab.expect_request("**/api/characters"):
            by_mouse(tab, QUERY, HOOK)
        held.pop().fulfill(json=ANSWER)
        expect(tab.locator("#verdict")).to_have_text("Character 2, 100 % after 1 step.")
        verdicts = tab.evaluate("() => window.verdicts")
        assert not [text for text in verdicts if "Character 1" in text], "nobody wants that answer any more"


ANSWER = {"before": [0.5, 0.5], "after": [0, 1], "losses": [1, 1], "image": [[0] * 28] * 28}
NOTE_VERDICTS = """() => {
    const verdict = document.getElementById("verdict");
    window.verdicts = [];
    new MutationObserver(() => window.verdicts.push(verdict.textContent)).observe(verdict, { childList: true });
}"""


def test_a_server_that_has_ended_or_refuses_is_told(browser: Any, address: str) -> None:
    with opened(browser, address, heard=("Failed to load resource",)) as tab:
        trouble = tab.locator("#trouble")
        tab.route("**/api/characters", lambda route: route.abort())
        by_mouse(tab, 1, LINE)
        by_mouse(tab, 2, HOOK)
        by_mouse(tab, QUERY, HOOK)
        trouble.wait_for()
        assert trouble.inner_text() == "The server does not answer. Start innerloop demo again."
        tab.unroute("**/api/characters")
        tab.route("**/api/characters", lambda route: route.fulfill(status=503, json={"error": "busy"}))
        by_mouse(tab, QUERY, LINE)
        expect(tab.locator("#trouble")).to_have_text("busy")
        tab.unroute("**/api/characters")
        by_mouse(tab, QUERY, LINE)
        trouble.wait_for(state="hidden")


# -- functions --------------------------------------------------------------------------------------------------------


@contextmanager
def functions(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    with opened(browser, address + "#functions", **options) as tab:
        yield tab


def test_points_by_mouse_and_the_function_before_and_after(browser: Any, address: str) -> None:
    with functions(browser, address) as tab:
        plot = tab.locator("#plot")
        for x, y in ((200, 100), (400, 200), (600, 150)):
            plot.click(position={"x": x, "y": y})
        assert re.fullmatch(r"Mean squared error on the points: \S+ before, \S+ after 10 steps\.", told(tab))
        assert [tab.locator(f"#plot .{kind}").count() for kind in ("point", "before", "after", "truth")] == [3, 1, 1, 0]
        assert tab.locator("#function-loss circle").count() == 11
        centre = plot.locator(".point").nth(1).bounding_box()
        assert centre["x"] + centre["width"] / 2 == pytest.approx(plot.bounding_box()["x"] + 400, abs=1.5)
        plot.click(position={"x": 402, "y": 201})  # again, to take it away
        assert tab.locator("#plot .point").count() == 2
        tab.get_by_role("button", name="Undo").click()
        assert tab.locator("#plot .point").count() == 1
        tab.get_by_role("button", name="Clear", exact=True).click()
        assert [tab.locator(f"#plot .{kind}").count() for kind in ("point", "before", "after")] == [0, 0, 0]


def test_ten_points_of_a_random_sinusoid_and_the_slider(browser: Any, address: str) -> None:
    with functions(browser, address, **PHONE) as tab:
        tab.get_by_role("button", name="Random sinusoid").tap()
        expect(tab.locator("#plot .point")).to_have_count(
            10
        )  # which come from the server, before it is asked about them
        told(tab)
        assert [tab.locator(f"#plot .{kind}").count() for kind in ("point", "truth")] == [10, 1]
        assert tab.locator("#truth-key").is_visible()
        slider = tab.get_by_label("Gradient steps").last
        slider.press("Home")
        expect(tab.locator("#function-loss circle")).to_have_count(1)
        before, after = (tab.locator(f"#plot .{kind}").get_attribute("d") for kind in ("before", "after"))
        assert before == after
        slider.press("ArrowRight")
        expect(tab.locator("#function-loss circle")).to_have_count(2)
        assert tab.locator("#plot .before").get_attribute("d") == before
        assert tab.locator("#plot .after").get_attribute("d") != after
        # A tap on a point takes it away, and these are random: one that is far from all of them.
        places = "all => all.map(point => [point.cx.baseVal.value, point.cy.baseVal.value])"
        points = tab.locator("#plot .point").evaluate_all(places)
        candidates = [(x, y) for x in (60, 100, 150, 200) for y in (40, 60, 80)]
        free = max(candidates, key=lambda at: min(map(partial(dist, at), points)))
        tab.locator("#plot").tap(position=dict(zip("xy", free, strict=True)))
        assert [tab.locator(f"#plot .{kind}").count() for kind in ("point", "truth")] == [11, 0]


def test_points_by_keyboard(browser: Any, address: str) -> None:
    with functions(browser, address) as tab:
        tab.locator("#plot").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Space"):
            tab.keyboard.press(key)
        with tab.expect_request("**/api/function") as asked:
            for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft", "Shift+ArrowDown", "Enter"):
                tab.keyboard.press(key)
        told(tab)
        assert asked.value.post_data_json["points"] in ([[1, 0.6]], [[1, 0.6], [-0.5, pytest.approx(0.48)]])
        assert tab.locator("#plot .point").count() == 2
        tab.keyboard.press("Backspace")
        assert tab.locator("#plot .point").count() == 1
        tab.keyboard.press("Escape")
        assert tab.locator("#plot .point").count() == 0


# -- for everybody ----------------------------------------------------------------------------------------------------

SMALL = """() => [...document.querySelectorAll("button, label:has(input), input:not([name=count]), summary, canvas[tabindex]")]
  .filter((e) => e.offsetParent).map((e) => [e.outerHTML.slice(0, 60), e.getBoundingClientRect()])
  .filter(([, box]) => box.height < 43.9 || box.width < 43.9).map(([text]) => text)"""  # noqa: E501


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_has_room_for_all_of_it(browser: Any, address: str, width: int) -> None:
    with opened(browser, address, **{**PHONE, "viewport": {"width": width, "height": 844}}) as tab:
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert tab.evaluate(fits)
        tab.locator("#count label", has_text="5").tap()
        tab.get_by_role("button", name="Show me").tap()
        told(tab)
        assert tab.evaluate(fits)
        assert tab.evaluate(SMALL) == []
        tab.get_by_role("tab", name="Functions").tap()
        tab.get_by_role("button", name="Random sinusoid").tap()
        tab.locator("#function-loss path").wait_for()
        assert tab.evaluate(fits)
        assert tab.evaluate(SMALL) == []


def test_on_a_phone_the_answer_is_seen_while_one_draws(browser: Any, address: str) -> None:
    with opened(browser, address, **PHONE) as tab:
        tab.get_by_role("button", name="Show me").tap()
        told(tab)
        tops = [tab.locator(where).bounding_box() for where in ("#query", "#bars")]
        assert tops[1]["y"] + tops[1]["height"] - tops[0]["y"] < 844 - 100  # what the browser's own bars take


def test_a_finger_that_draws_does_not_scroll(browser: Any, address: str) -> None:
    with opened(browser, address, **PHONE) as tab:
        canvas(tab, QUERY).scroll_into_view_if_needed()
        before = tab.evaluate("scrollY")
        by_touch(tab, QUERY, [[(0.5, 0.9), (0.5, 0.6), (0.5, 0.3), (0.5, 0.1)]])
        assert tab.evaluate("scrollY") == before
        assert canvas(tab, QUERY).evaluate("c => getComputedStyle(c).touchAction") == "none"


CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[0-9.]+/g).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    while (e && /(0, 0, 0, 0|transparent|color\\()/.test(getComputedStyle(e).backgroundColor)) e = e.parentElement;
    return light(getComputedStyle(e ?? document.body).backgroundColor);
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const seen = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length);
  const texts = seen("h1, h2, p, button, label, output, small, strong, figcaption, summary, .number, .which, text")
    .map((e) => ratio(light(getComputedStyle(e)[e.localName === "text" ? "fill" : "color"]), ground(e)));
  const filled = (style) => style.backgroundColor.includes("0, 0, 0, 0") ? style.borderTopColor : style.backgroundColor;
  const shapes = seen(".track div, .key").map((e) => ratio(light(filled(getComputedStyle(e))), ground(e.parentElement)))
    .concat(seen("path.after, path.before, path.truth, circle").map(
      (e) => ratio(light(getComputedStyle(e)[e.localName === "path" ? "stroke" : "fill"]), ground(e))))
    .concat(seen("canvas[tabindex], button:not(.icon):not([role=tab])").map(
      (e) => ratio(light(getComputedStyle(e).borderTopColor), ground(e.parentElement))));
  return [Math.min(...texts), Math.min(...shapes)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_can_be_read_on_light_and_on_dark(browser: Any, address: str, scheme: str) -> None:
    with opened(browser, address, color_scheme=scheme) as tab:
        tab.get_by_role("button", name="Show me").click()
        told(tab)
        ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(ground[4:].split(",")[0]) > 128) == (scheme == "light")
        for name in ("Characters", "Functions"):
            tab.get_by_role("tab", name=name).click()
            if name == "Functions":
                tab.get_by_role("button", name="Random sinusoid").click()
                tab.locator("#plot path.after").wait_for()
            texts, shapes = tab.evaluate(CONTRAST)
            assert texts >= 4.5
            assert shapes >= 3.0


def test_everything_that_can_be_used_has_a_name_and_is_explained(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        drawn_on(tab)
        for role in ("button", "slider", "radio", "tab", "application", "img", "tabpanel", "list"):
            found = tab.get_by_role(role)
            assert found.count() > 0, role
            assert found.count() == tab.get_by_role(role, name=re.compile(r"\S")).count(), f"a {role} without a name"
        for where in tab.locator("[role=application]").all():
            keys = tab.locator("#" + where.get_attribute("aria-describedby"))
            assert "rrow keys move a" in keys.text_content()
        ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))
        assert tab.locator("html").get_attribute("lang") == "en"
        assert tab.locator("#heard").get_attribute("role") == "status"
        assert tab.locator("#trouble").get_attribute("role") == "alert"
        assert [h.inner_text() for h in tab.locator("h1:visible").all()] == ["Characters from one drawing each"]


def test_tabs_by_keyboard(browser: Any, address: str) -> None:
    with opened(browser, address) as tab:
        first, second = tab.get_by_role("tab").all()
        first.focus()
        tab.keyboard.press("ArrowRight")
        assert (first.get_attribute("aria-selected"), second.get_attribute("aria-selected")) == ("false", "true")
        assert second.evaluate("e => e === document.activeElement")
        assert tab.locator("#functions").is_visible()
        assert not tab.locator("#characters").is_visible()


def test_a_model_of_one_kind_has_one_tab(browser: Any, small: Any, served: Any) -> None:
    only = (None, small[1])
    with opened(browser, served(only)) as tab:
        assert not tab.get_by_role("tablist").is_visible()
        assert tab.locator("#functions").is_visible()


# -- what it is for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sets", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_new_drawings_are_told(browser: Any, trained: Any, served: Any, sets: int) -> None:
    """Each drawn once, then one of them again, at another place and size, slanted, with another hand."""
    rng, right = random.Random(0), []
    for by, options in ((by_mouse, {}), (by_touch, PHONE)):
        with opened(browser, served(trained), **options) as tab:
            for names, again in CASES[len(right) :][: sets // 2]:
                tab.get_by_role("button", name="Clear all").click()
                tab.locator("#count label", has_text=str(len(names))).click()
                for number, name in enumerate(names, 1):
                    by(tab, number, drawn(name, rng))
                expect(tab.locator("#heard")).to_have_text("All drawings cleared")
                by(tab, QUERY, drawn(again, rng))
                right.append(told(tab).startswith(f"Character {names.index(again) + 1},"))
    print(f"{sum(right)} of {sets} drawings told")
    assert len(right) == sets
    assert sum(right) >= 0.9 * sets
