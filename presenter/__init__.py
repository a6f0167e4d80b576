"""The stimulus PC's program: shows a session's images, reports when they were seen and what was answered.

::

    session.py       the script: waiting text, trigger, fixation, images, ratings, end text
    display.py       what the script asks of a display
    screen.py        the display with PsychoPy: a real screen and keyboard
    headless.py      displays without a screen: real time, and lock-step for simulated sessions
    link.py          the connection to the support computer, in a thread of its own
    triggers.py      the scanner's pulses from a serial or parallel port
    markers.py       markers for the Lab Streaming Layer
    run.py           one session from the connection to the end
    selftest.py      refresh rate, jitter, upload time, trigger, round trip: a report
    __main__.py      command line

Of rtevo it needs `rtevo.wire` alone, so that the stimulus PC needs no more than PsychoPy brings (pyzmq, msgpack, numpy, pillow);
headless it needs pyzmq and msgpack.
"""
