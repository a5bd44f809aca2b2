"""The cases of the Autobahn test suite, run by kosoku. Arguments: URL, parallel cases, then which cases, by id or
glob; those that begin with a minus are left out. Says how many passed of each section."""

import asyncio
import os
import sys
from collections import Counter

from kosoku import FailureError, run_fuzzingclient

url, parallel, *cases = sys.argv[1:]


async def main():
    include = [case for case in cases if not case.startswith("-")]
    exclude = [case[1:] for case in cases if case.startswith("-")]
    try:
        results = await run_fuzzingclient(url, include, exclude or None, concurrency=int(parallel))
    except FailureError as failure:
        results = failure.results
    all_of, passed = Counter(), Counter()
    for result in results:
        section = int(result.case_id.split(".")[0])
        all_of[section] += 1
        passed[section] += result.passed
        if not result.passed:
            print(f"{result.case_id}: {result.behavior.value}, {result.behavior_close.value}: {result.result}")
    for section in sorted(all_of):
        print(f"section {section}: {passed[section]} of {all_of[section]} passed")
    print(f"all: {passed.total()} of {all_of.total()} passed", flush=True)
    # Its threads sometimes crash when the interpreter is taken down around them.
    os._exit(int(passed != all_of or not results))


asyncio.run(main())
