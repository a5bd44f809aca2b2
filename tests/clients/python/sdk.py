"""Daytona's own client for Python. Its first argument says who the guest is: `simulated` knows fewer calls."""

import asyncio
import hashlib
import os
import sys
import threading
from importlib.metadata import version

import requests
from daytona import Daytona, DaytonaConfig
from daytona.common.process import SessionExecuteRequest
from daytona.common.pty import PtySize

FRONT = os.environ["FRONT_URL"]
SCRATCH = os.environ["SCRATCH"]
passed = []


def check(name, work):
    result = work()
    passed.append(name)
    return result


def both(sandbox):
    """What either guest knows."""
    home = check("get_user_home_dir", sandbox.get_user_home_dir)
    assert home.startswith("/"), home
    assert check("get_work_dir", sandbox.get_work_dir) == home
    result = check("process.exec", lambda: sandbox.process.exec("echo 'hello'; echo $NAME", env={"NAME": "value"}))
    assert (result.exit_code, result.result) == (0, "hello\nvalue\n"), result
    assert sandbox.process.exec("exit 3").exit_code == 3
    check("fs.create_folder", lambda: sandbox.fs.create_folder("folder", "755"))
    sandbox.process.exec("echo content > folder/one", cwd=home)
    names = [info.name for info in check("fs.list_files", lambda: sandbox.fs.list_files("folder"))]
    assert names == ["one"], names
    info = check("fs.get_file_info", lambda: sandbox.fs.get_file_info("folder/one"))
    assert (info.size, info.is_dir) == (8, False), info
    check("fs.delete_file", lambda: sandbox.fs.delete_file("folder/one"))
    assert sandbox.fs.list_files("folder") == []
    try:
        sandbox.fs.get_file_info("folder/one")
        raise AssertionError("it is gone")
    except Exception as error:  # The class is the client's business, the guest's answer must be in it.
        assert "404" in str(error) or "no such" in str(error).lower(), error
    preview = check("get_preview_link", lambda: sandbox.get_preview_link(8080))
    return preview


def simulated(sandbox):
    preview = both(sandbox)
    seen = requests.get(f"{preview.url}/page?x=1", timeout=30).json()
    assert (seen["path"], seen["query"]) == ("/proxy/8080/page", "x=1"), seen
    # The simulated guest has no route for these; its own 404 is what must arrive.
    for name, call in [
        ("fs.upload_file", lambda: sandbox.fs.upload_file(b"x", "up")),
        ("fs.download_file", lambda: sandbox.fs.download_file("up")),
        ("process.code_run", lambda: sandbox.process.code_run("print(1)")),
        ("process.create_session", lambda: sandbox.process.create_session("s")),
    ]:
        try:
            call()
            raise AssertionError(f"{name}: the simulated guest knows it now, so test it")
        except AssertionError:
            raise
        except Exception as error:
            assert "404" in str(error), f"{name}: {error}"


def files(sandbox):
    large = os.urandom(32 << 20)
    check("fs.upload_file", lambda: sandbox.fs.upload_file(large, "large"))
    sum_there = sandbox.process.exec("sha256sum large").result.split()[0]
    assert sum_there == hashlib.sha256(large).hexdigest()
    assert check("fs.download_file", lambda: sandbox.fs.download_file("large")) == large
    local = f"{SCRATCH}/downloaded"
    sandbox.fs.download_file("large", local)
    with open(local, "rb") as file:
        assert file.read() == large
    streamed = check("fs.download_file_stream", lambda: b"".join(sandbox.fs.download_file_stream("large")))
    assert streamed == large
    progress = []
    with open(local, "rb") as file:
        check("fs.upload_file_stream", lambda: sandbox.fs.upload_file_stream(file, "again", on_progress=progress.append))
    assert sandbox.fs.get_file_info("again").size == len(large) and progress[-1].bytes_sent == len(large)
    cancel = threading.Event()
    try:
        for _ in sandbox.fs.download_file_stream("large", cancel_event=cancel):
            cancel.set()
        raise AssertionError("it was cancelled")
    except Exception as error:
        assert "cancel" in str(error).lower(), error
    passed.append("download cancelled")
    try:
        sandbox.fs.download_file("not-there")
        raise AssertionError("there is no such file")
    except Exception as error:
        assert "not-there" in str(error) or "ENOENT" in str(error), error
    check("fs.move_files", lambda: sandbox.fs.move_files("again", "moved"))
    check("fs.set_file_permissions", lambda: sandbox.fs.set_file_permissions("moved", mode="600"))
    assert sandbox.fs.get_file_info("moved").permissions == "0600"
    sandbox.fs.upload_file(b"a needle\n", "folder/hay")
    [found] = check("fs.find_files", lambda: sandbox.fs.find_files("folder", "needle"))
    assert (found.line, found.content) == (1, "a needle"), found


def sessions(sandbox):
    process = sandbox.process
    result = check("process.code_run", lambda: process.code_run("print(6 * 7)"))
    assert (result.exit_code, result.result) == (0, "42\n"), result
    check("process.create_session", lambda: process.create_session("work"))
    request = SessionExecuteRequest(command="echo out; echo err >&2; exit 4")
    done = check("process.execute_session_command", lambda: process.execute_session_command("work", request))
    assert (done.exit_code, done.stdout, done.stderr) == (4, "out\n", "err\n"), done
    logs = check("process.get_session_command_logs", lambda: process.get_session_command_logs("work", done.cmd_id))
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n"), logs

    # Followed while it runs, by a WebSocket.
    slow = SessionExecuteRequest(command="for n in 1 2 3 4 5; do echo $n; echo e$n >&2; sleep 0.1; done", run_async=True)
    begun = process.execute_session_command("work", slow)
    out, err = [], []
    following = process.get_session_command_logs_async("work", begun.cmd_id, out.append, err.append)
    check("process.get_session_command_logs_async", lambda: asyncio.run(following))
    assert "".join(out) == "1\n2\n3\n4\n5\n" and "".join(err) == "e1\ne2\ne3\ne4\ne5\n", (out, err)
    assert check("process.get_session_command", lambda: process.get_session_command("work", begun.cmd_id)).exit_code == 0

    # The same as a plain request, which the runner turns into a WebSocket to the guest.
    begun = process.execute_session_command("work", slow)
    url = f"{FRONT}/toolbox/{sandbox.id}/process/session/work/command/{begun.cmd_id}/logs?follow=true"
    with requests.get(url, stream=True, timeout=30) as answer:
        assert answer.headers["content-type"] == "application/octet-stream", answer.headers
        text = b"".join(answer.iter_content(None))
    assert text.count(b"\x01\x01\x01") == 5 and text.count(b"\x02\x02\x02") == 5 and b"5\n" in text, text
    passed.append("logs?follow=true without a WebSocket")
    assert [each.session_id for each in check("process.list_sessions", process.list_sessions)] == ["work"]
    assert len(check("process.get_session", lambda: process.get_session("work")).commands) == 3
    check("process.delete_session", lambda: process.delete_session("work"))


def terminal(sandbox):
    handle = check("process.create_pty_session", lambda: sandbox.process.create_pty_session("tty", pty_size=PtySize(80, 24)))
    handle.wait_for_connection()
    handle.send_input("tty; echo two$((1 + 1)); exit 7\n")
    seen = bytearray()
    result = check("pty.wait", lambda: handle.wait(on_data=seen.extend))
    assert b"/dev/pts/" in seen and b"two2" in seen, bytes(seen)
    assert result.exit_code == 7, result


daytona = Daytona(DaytonaConfig(api_key="a-user's-key", api_url=f"{FRONT}/api", target="local"))
sandbox = daytona.get("box")
if sys.argv[1] == "simulated":
    simulated(sandbox)
else:
    both(sandbox)
    files(sandbox)
    sessions(sandbox)
    terminal(sandbox)
print(f"daytona {version('daytona')} for Python, {sys.argv[1]} guest, {len(passed)} calls: {', '.join(passed)}", flush=True)
# Its connection for events is of no use here, and waits.
os._exit(0)
