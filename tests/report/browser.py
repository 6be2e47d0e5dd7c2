#!/usr/bin/env python3
"""Drives headless Chromium over its debugging pipe; standard library only. Not a test by itself: browser_test.cpp
gives it pages and steps.

usage: browser.py CHROMIUM STEPS.json

STEPS.json is a list of steps; each is one object:
  {"open": "file:///...", "width": 1200, "height": 900, "dark": false}
  {"eval": "expression", "is": value}     the expression's value must be that
  {"key": "Tab"}                          a key press as from a keyboard ("Tab", "Enter", "/", letters)
  {"click": "selector", "loads": false}   with the mouse, in the middle of the first element; loads: a page follows
  {"shot": "file.png"}                    of the whole page
Every console error, uncaught exception and failed request is a failure. Prints one line a failure; exit status 1.
"""
import base64
import json
import os
import subprocess
import sys
import tempfile
import time

KEYS = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
}


class Browser:
    def __init__(self, program, profile):
        to_child, self.out = os.pipe()
        self.inp, from_child = os.pipe()

        def place():  # the browser reads commands from descriptor 3 and writes answers to 4
            high_in, high_out = os.dup(to_child), os.dup(from_child)
            while high_in < 5 or high_out < 5:
                high_in, high_out = os.dup(high_in), os.dup(high_out)
            os.dup2(high_in, 3)
            os.dup2(high_out, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-extensions", "--disable-background-networking", "--disable-component-update",
             "--hide-scrollbars", "--remote-debugging-pipe", "--user-data-dir=" + profile, "about:blank"],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def receive(self):
        while b"\0" not in self.buffer:
            piece = os.read(self.inp, 1 << 16)
            if not piece:
                raise RuntimeError("the browser ended")
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def wait_for(self, name):
        while True:
            for i, e in enumerate(self.events):
                if e["method"] == name:
                    del self.events[i]
                    return
            self.events.append(self.receive())

    def problems(self):
        """What the page complained of since the last call."""
        out = []
        self.call("Runtime.evaluate", expression="0")  # everything before it has arrived with its answer
        for e in self.events:
            p = e.get("params", {})
            if e["method"] == "Runtime.exceptionThrown":
                d = p["exceptionDetails"]
                out.append("exception: " + d.get("exception", {}).get("description", d.get("text", "")))
            elif e["method"] == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
                out.append("log: " + p["entry"]["text"])
            elif e["method"] == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
                out.append("console: " + str([a.get("value") for a in p["args"]]))
            elif e["method"] == "Network.loadingFailed":
                out.append("request failed: " + p.get("errorText", ""))
            elif e["method"] == "Network.requestWillBeSent" and not p["request"]["url"].startswith(("file:", "data:")):
                out.append("request to the network: " + p["request"]["url"])
            elif e["method"] == "Page.javascriptDialogOpening":
                out.append("dialog: " + p.get("message", ""))
        self.events = []
        return out

    def close(self):
        try:
            self.session = None
            self.call("Browser.close")
            self.process.wait(10)
        except Exception:  # it is leaving either way
            self.process.kill()
            self.process.wait()


def step(browser, s, say):
    if "open" in s:
        width, height = s.get("width", 1200), s.get("height", 900)
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                     mobile=width < 500)
        browser.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if s.get("dark") else "light"}])
        browser.events = []
        browser.call("Page.navigate", url=s["open"])
        browser.wait_for("Page.loadEventFired")
    if "eval" in s:
        r = browser.call("Runtime.evaluate", expression=s["eval"], returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in r:
            say(f"{s['eval']}: {r['exceptionDetails'].get('exception', {}).get('description')}")
        elif "is" in s and r["result"].get("value") != s["is"]:
            say(f"{s['eval']}: {json.dumps(r['result'].get('value'))} instead of {json.dumps(s['is'])}")
    if "key" in s:
        k = KEYS.get(s["key"], {"key": s["key"], "text": s["key"]})
        browser.call("Input.dispatchKeyEvent", type="keyDown", **k)
        browser.call("Input.dispatchKeyEvent", type="keyUp", **{n: v for n, v in k.items() if n != "text"})
    if "click" in s:
        at = browser.call("Runtime.evaluate", returnByValue=True, expression="""(function(){
            var e=document.querySelector(%s);if(!e)return null;e.scrollIntoView({block:"center",inline:"nearest"});
            var r=e.getBoundingClientRect();return [r.x+r.width/2,r.y+r.height/2];})()""" % json.dumps(s["click"]))
        place = at["result"].get("value")
        if not place:
            say(f"{s['click']}: no such element")
            return
        for kind in ("mousePressed", "mouseReleased"):
            browser.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)
        if s.get("loads"):
            browser.wait_for("Page.loadEventFired")
    if "shot" in s:
        size = browser.call("Page.getLayoutMetrics")["cssContentSize"]
        height = min(size["height"], s.get("max_height", 8000))
        clip = {"x": 0, "y": s.get("y", 0), "width": size["width"], "height": height, "scale": s.get("scale", 1)}
        shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        with open(s["shot"], "wb") as f:
            f.write(base64.b64decode(shot["data"]))


def main():
    program, steps_file = sys.argv[1:3]
    with open(steps_file, encoding="utf-8") as f:
        steps = json.load(f)
    failures = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        started = time.monotonic()
        try:
            for i, s in enumerate(steps):
                def say(text, i=i):
                    nonlocal failures
                    failures += 1
                    print(f"step {i + 1}: {text}")
                step(browser, s, say)
                for p in browser.problems():
                    say(p)
                if time.monotonic() - started > 100:
                    say("the steps take too long")
                    break
        finally:
            browser.close()
    print(f"{len(steps)} steps, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
