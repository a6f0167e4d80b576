"""The stimulus PC's program: shows a session's images, reports when they were seen and what was answered.

::

    session.py       the script: waiting text, trigger, fixation, images, ratings, end text
    display.py       what the script asks of a display
    screen.py        the display with PsychoPy: a real screen
    stimuli.py       what can be on it
    lettering.py     texts as pictures: whether they fit, and whether the font has every character
    keys.py          keyboards of PsychoPy, and whether the window is in front
    frames.py        what times between flips say of a screen
    screens.py       list of the screens
    headless.py      displays without a screen: real time, and lock-step for simulated sessions
    link.py          the connection to the support computer, in a thread of its own
    place.py         which computer this is, and whether another presenter runs on it
    triggers.py      the scanner's pulses from a serial or parallel port
    pins.py          a process that watches a pin of a parallel port
    priority.py      other programs come second while a session runs
    markers.py       markers for the Lab Streaming Layer
    run.py           sessions from the connection to the end
    selftest.py      keys, refresh rate, jitter, upload time, trigger, round trip: a report
    __main__.py      command line

Of rtevo it needs `rtevo.wire` alone, so that the stimulus PC needs no more than PsychoPy brings (pyzmq, msgpack, numpy, pillow);
headless it needs pyzmq and msgpack.
"""
