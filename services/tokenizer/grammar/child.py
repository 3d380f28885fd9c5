"""A compiling process: reads jobs from its pipe, answers each, one at a time.

It bounds its own memory; the parent bounds its time, and kills it. xgrammar, and PyTorch with it, is imported here
and not in the service itself.
"""

import ctypes
import logging
import os
import resource
import signal
from multiprocessing.connection import Connection

import msgspec
import xgrammar
from tokenizers import Tokenizer

from services.tokenizer.grammar.compile import to_source
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.protocol import FAILED, OUT_OF_MEMORY, Answer, Compiled, Job, Ready, Refused, Setup
from shared.grammar import (
    XGRAMMAR,
    XGRAMMAR_SOURCE,
    CompiledGrammar,
    caching_compiler,
    compile_source,
    encode,
    tokenizer_info,
)

log = logging.getLogger(__name__)

NICENESS = 10
GROWTH_BYTES = 128 * 2**20
"""A child that has grown by so much is replaced."""

GRACE_S = 5.0

MAX_SERIALIZED_RULES = 40
"""The serialized form of a grammar of more rules takes longer to read than the grammar to compile again."""


def main(connection: Connection) -> None:
    """Entry point of the process; ends when the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on
    os.nice(NICENESS)
    setup = msgspec.msgpack.decode(connection.recv_bytes(), type=Setup)
    info = _tokenizer_info(setup)
    connection.send_bytes(msgspec.msgpack.encode(Ready(tokenizer_info=info.serialize_json().encode())))
    compiler = caching_compiler(info)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _bytes_of("size") + setup.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start = _bytes_of("resident")
    jobs = msgspec.msgpack.Decoder(Job)
    while True:
        try:
            job = jobs.decode(connection.recv_bytes())
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_PROF, setup.timeout_s + GRACE_S)  # the parent is quicker, if there is one
        answer = _answer(job, compiler, setup)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _give_back_memory()
        is_last = answer.is_last or _bytes_of("resident") - start > GROWTH_BYTES
        connection.send_bytes(msgspec.msgpack.encode(msgspec.structs.replace(answer, is_last=is_last)))
        if is_last:
            return


def _tokenizer_info(setup: Setup) -> "xgrammar.TokenizerInfo":
    if setup.tokenizer_info:
        return xgrammar.TokenizerInfo.deserialize_json(setup.tokenizer_info.decode())
    return tokenizer_info(Tokenizer.from_str(setup.tokenizer.decode()), setup.vocab_size, setup.stop_token_ids)


def _answer(job: Job, compiler: "xgrammar.GrammarCompiler", setup: Setup) -> Answer:
    try:
        source = to_source(job.kind, job.source, setup.max_characters)
        grammar = compile_source(compiler, source)
        if str(grammar.grammar).count("::=") > MAX_SERIALIZED_RULES:
            record = CompiledGrammar(
                engine=XGRAMMAR_SOURCE,
                serialized=b"",
                source=source,
                stop_token_ids=tuple(setup.stop_token_ids),
                vocab_size=setup.vocab_size,
            )
        else:
            serialized = grammar.serialize_json().encode()
            record = CompiledGrammar(engine=XGRAMMAR, serialized=serialized, source=source)
        return Compiled(grammar=encode(record))
    except Unenforceable as error:
        return Refused(message=str(error))
    except RecursionError:
        return Refused(message="is nested too deeply")
    except MemoryError:
        return Refused(message=OUT_OF_MEMORY, is_last=True)
    except RuntimeError as error:  # what xgrammar raises, for bad grammars and for want of memory
        if "bad_alloc" in str(error):
            return Refused(message=OUT_OF_MEMORY, is_last=True)
        reason = (str(error).splitlines() or [repr(error)])[0]
        return Refused(message=f"cannot be compiled: {reason[:500]}")
    except Exception:  # the process is for the jobs behind this one too
        log.exception("compiling a constraint")
        return Refused(message=FAILED)


def _bytes_of(which: str) -> int:
    """This process's address space (`size`) or memory (`resident`)."""
    with open("/proc/self/statm") as statm:
        size, resident, *_ = map(int, statm.read().split())
    return {"size": size, "resident": resident}[which] * resource.getpagesize()


def _give_back_memory() -> None:
    """What was freed goes back to the system, where the C library can do that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
