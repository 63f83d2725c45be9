"""What logs, viewers and people put before a kernel message: one grammar of tokens, for all formats.

A prefix is a run of tokens: times, dates in any language, levels, brackets, file names with line numbers, quotes, keys
with values, and the word `kernel:`. Between such runs stand names of hosts, pods and containers. A name alone is weak
evidence, since any word could be one. It counts if it looks like the name of a host, or if a time, a level or
`kernel:` follows. So a sentence is no prefix, and neither is the identifier of a program, as in `python[12]: …`.

After the kernel's own time or the word `kernel:` comes the message itself: no name is skipped there, because that could
be the name of a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_FACILITY = r"(?:kern|user|mail|daemon|auth(?:priv)?|syslog|lpr|news|uucp|cron|ftp|local[0-7])"
_LEVEL = r"(?i:emerg(?:ency)?|alert|crit(?:ical)?|err(?:or)?|warn(?:ing)?|notice|info|debug)"
_COUNTED = {"kern": 0, "user": 1, "syslog": 5}
"""Facilities of kernel messages: the kernel's own, and those that a program gets or names for a drill.

A record that a program writes to /dev/kmsg has the facility user, unless it names one. gpud's fault injector names
syslog (leptonai/gpud, pkg/kmsg/writer).
"""
_FACILITIES = frozenset(_COUNTED.values())

# A word of a date in any language: `Mar`, `mars`, `mer.`, `мар`, `3月`, `มี.ค.`
_DATE_WORD = r"[^\s\d\[\]<>{}()=,;:|\"'`/\\]{1,12}[.,]?"
_NUMBER = r"\d{1,4}(?:[.,]|st|nd|rd|th|[^\W\d_]{1,2}[.,]?)?"
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d{1,9})?)?"
_ISO = rf"\d{{4}}[-/]\d\d[-/]\d\d(?:[T ] ?{_CLOCK}(?:Z| ?[+-]\d\d:?\d\d)?)?"
_ZONE = r"(?: +(?:[AP]M|\d{4}|UTC|MSK|[A-Z]{1,4}T|[+-]\d{2}(?::?\d{2})?))*"
_DATE = (
    rf"(?:{_DATE_WORD} +)?{_ISO}{_ZONE}"
    rf"|(?:{_DATE_WORD} {{0,2}}){{0,2}}(?:{_NUMBER} +){{1,3}}(?:{_DATE_WORD} +)?(?:{_NUMBER} +)?{_CLOCK}{_ZONE}"
    rf"|{_CLOCK}{_ZONE}"
)
_HOST = r"(?:(?=[^\s:]*[\d.-])[\w.%@-]{1,253}|[0-9a-fA-F]{0,4}:[0-9a-fA-F:.]{2,40}(?:%\w{1,15})?|localhost|\(none\))"
_WORD = r"[\w.@%/-]{1,253}"

_KERNEL = r"(?:(?:vm)?kernel|vmkwarning|vmunix)(?:\[[\d-]*\])?:"
_PATH = r"(?:/[\w.@+~%-]+|[\w.@+~%-]+/)[\w.@+~%/-]*"
_FILE = rf"(?:{_PATH}|[\w.@+~%-]+\.(?:log|txt|gz|zst|xz|bz2|out|err|json|\d{{1,8}}))"

_STRONG = (  # the order counts: what begins like another token but is longer goes first
    r"[\s\ufeff\x00-\x1f\x7f]+",
    r"(?P<raw>\d{1,4}),\d{1,20},\d{1,20},[^;]{0,200};",  # a record of /dev/kmsg
    rf"<(?:(?P<priority>\d{{1,3}})>(?:1 )?|{_FACILITY}\.{_LEVEL}>|\w{{1,16}}>:?)",
    r"(?P<seconds>\[ *\d{1,12}\.\d{1,9}(?: *<[ \d.+-]+>)?\]:?)",  # the kernel's time
    rf"(?P<dated>\[(?:{_DATE})\]:?|(?:{_DATE})(?=[\s\[\]:{{,|\"'<]|$):?)",
    rf"\[ *(?:{_LEVEL}|{_FACILITY})(?:[.: ]{_LEVEL})? *\]:?",
    r"\[(?!\")(?=[^\[\]{}]*[\d/+])[^\[\]{}]{0,400}\]:?",  # threads, pods, structured data, relative times
    rf"(?P<facility>{_FACILITY}) *[.:] *{_LEVEL} *:?(?=\s)",
    r"(?P<container>(?:stdout|stderr) [FP])(?=\s)",  # the log of a container
    rf"(?:(?:{_HOST}|{_WORD}) +)?(?:{_FACILITY}\.{_LEVEL} +)?(?P<kernel>{_KERNEL})",
    r"(?P<rfc5424>(?:\S{1,255} )?kernel (?:-|\d+) \S{1,32} )",
    r"cpu\d{1,4}:\d{1,12}\)(?:WARNING: )?|\w{1,8}\(\d{1,4}\)(?=\s)",  # ESXi
    r"\((?:d?\d{1,5}|XEN)\)",
    r"(?:ok|changed|fatal|failed): \[[^\[\]]{1,253}\]:?(?: [A-Z]+!)? =>",  # ansible
    r"\{[a-z]\w{1,15}\}",  # Jira
    r"\[(?=')|b(?=['\"])",  # lists and bytes as Python prints them
    r"\{\w{1,64}=\"[^{}]{0,2000}\}",  # labels of Loki
    r"(?:message|msg|log|line|text|event|MESSAGE)=",
    r"[\w@.-]{1,64}=(?:(?=[\"'])|[^\s\"',{}\[\]]{1,200}(?=[\s,]))",
    r"\d[\d.:,/+-]*[:|)\]]?(?=[\s\[\]<\"'{,]|$)|\d{1,9}[:-](?=\D)",  # numbers, also of lines
    r"[\"'`“”«»„\u2018\u2019|>\u203a*•+,-]+|\.\.\.|…",  # quotes, lists
)  # fmt: skip
_LOOSE = re.compile(  # a message may begin like these: "I/O error, …", "md/raid1:md0: …"
    rf"{_FILE}(?:(?::\d{{1,9}}(?=:)){{1,2}}|-\d{{1,9}}(?=-))?(?:[:-]|(?=[\s\[]))"
    r"|[\w.@-]{1,120} *\|(?=\s)|[\w.@-]{1,120}\t(?=\S)"  # docker compose, ansible; GNU parallel
    r"|\(standard input\)[:-](?:\d{1,9}[:-])?"  # grep
    r"|[\w.:-]{1,120}[\"']?[,;][\"']?(?=\S)"  # CSV
    r"|\[[^\[\]{}\"']{0,100}\]:?|\([\w.-]{1,64}\)(?=\s)"  # anything in brackets
    rf"|(?:kern +)?{_LEVEL}(?:: +|(?=[\s|]))|{_HOST} :"
)
_RUN = re.compile(rf"(?:{'|'.join(_STRONG)})*")
_EVIDENCE = rf"(?=\[ *[\d+\[{{\"]|<\d|{_KERNEL}|{{\s*\"|{_FACILITY} *[.:] *{_LEVEL}|\d{{1,4}},\d+,\d+,|{_DATE})"
_NAME = re.compile(rf"{_HOST}:?\s+|{_WORD}(?::\s*|\s+){_EVIDENCE}")
# After a date stand a host and the identifier of a program: only a host is skipped. Fluentd's tag stands before JSON.
_NAME_AFTER_DATE = re.compile(rf"{_HOST}(?:\s+kernel(?=\s))?\s+|{_WORD}\s+{_EVIDENCE}|{_WORD}:\s+(?={{\s*\")")
_BLANK = re.compile(r"(?:[\s\ufeff\0\"'`>|*-]|\[ *[TC]\d+\])*")
_CUT_HEAD = re.compile(r"[\s\"'`>|]*(?:[\d ]{0,12}\.?\d{1,9}\]|\]) ?(?!\[)|(?:ernel|rnel|nel|el|l): ", re.ASCII)
_MOST_NAMES = 8

# The most common prefixes in one expression, several times faster than the grammar.
_COMMON = re.compile(
    r"(?:(\d{1,4}),\d{1,20},\d{1,20},[^;]{0,200};"
    r"|((?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)"
    r" (?:[\w.-]{1,253} )?kernel: )?(?:\[ *(\d{1,12}\.\d{1,9})\](?: ?\[ *[TC]\d+\])? )?)(?=[A-Za-z])",
    re.ASCII,
)

_SECONDS = re.compile(r"\[ *(\d{1,12}\.\d{1,9})", re.ASCII)
_TAG = re.compile(r" [A-Z][A-Z0-9_]*=")  # of a raw record, such as " SUBSYSTEM=pci"


class Place(NamedTuple):
    """A place in a line where a message may begin."""

    start: int
    of_kernel: bool = False  # the kernel's own time or name stands before it
    seconds: str = ""  # the kernel's time, as written
    outer: str = ""  # what stands before that time
    dated: bool = False  # a time other than the kernel's stands before it
    raw: bool = False  # a record of /dev/kmsg, with escapes
    guessed: bool = False  # what follows may also be more of the prefix
    after_time: int = 0  # where the kernel's time ends, if more of a prefix seems to follow it


def places(line: str) -> Iterator[Place]:
    """The places in the line where a kernel message may begin, in their order.

    There is none where a prefix names a facility that is not the kernel's.
    """
    cut = _CUT_HEAD.match(line)
    position, dated, after_date, hosted = cut.end() if cut else 0, False, False, False
    for _ in range(_MOST_NAMES):
        run = _RUN.match(line, position)
        if run is None or not _counts(run):
            return
        # Of several times in brackets the first is the kernel's: the others may be text of a user.
        time = _SECONDS.search(line, run.start()) if run["seconds"] else None
        seconds = time[1] if time else ""
        of_kernel = bool(seconds or run["kernel"] or run["raw"] or run["rfc5424"])
        dated = dated or bool(run["dated"])
        outer = line[: time.start()] if time else ""
        after_time = line.find("]", time.end()) + 1 if time else 0
        place = Place(run.end(), of_kernel, seconds, outer, dated, run["raw"] is not None, after_time=after_time)
        marked = max(position, *(run.end(name) for name in ("raw", "seconds", "kernel", "rfc5424")))
        blank = _BLANK.match(line, marked)
        begin = blank.end() if blank else marked
        if begin < run.end() and line[begin].isalpha():
            yield place._replace(start=begin, guessed=True)
        loose = None if of_kernel else _LOOSE.match(line, run.end())
        yield place._replace(guessed=loose is not None)
        if of_kernel:
            return
        if run["dated"] or run["container"]:  # in the log of a container a line of its own begins
            after_date = run.end("container") <= run.end("dated")
        if loose is None and after_date and hosted:
            return
        name = loose or (_NAME_AFTER_DATE if after_date else _NAME).match(line, run.end())
        if name is None:
            return
        hosted = after_date and loose is None
        position = name.end()


def common_place(line: str) -> Place | None:
    """Where the message begins after one of the most common prefixes of the kernel; None for any other line."""
    match = _COMMON.match(line)
    if match is None:
        return None
    raw, dated, seconds = match.groups()
    end = match.end()
    if raw:
        return Place(end, True, raw=True) if int(raw) // 8 in _FACILITIES else None
    if not end or line.find("kernel", end, end + 300) >= 0:  # perhaps another prefix follows
        return None
    return Place(end, True, seconds or "", line[: match.start(3)] if seconds and dated else "", dated is not None)


def is_tag(line: str) -> bool:
    """Whether the line is a tag that follows a raw record of /dev/kmsg."""
    return _TAG.match(line) is not None


def _counts(run: re.Match[str]) -> bool:
    number = run["raw"] or run["priority"]
    if number and int(number) // 8 not in _FACILITIES:
        return False
    return not run["facility"] or run["facility"].lower() in _COUNTED
