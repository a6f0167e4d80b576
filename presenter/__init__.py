"""The stimulus PC's program: shows a session's images, and reports their times and the answers.

::

    session.py       the script: waiting text, trigger, fixation, images, ratings, end text
    display.py       the display's interface
    screen.py        the display with PsychoPy, on a real screen
    stimuli.py       what the screen can show
    lettering.py     texts as pictures; checks that they fit, and that the font has every character
    keys.py          PsychoPy's keyboards, and whether the window is in front
    frames.py        a screen's refresh rate, from times between flips
    screens.py       list of the screens
    headless.py      displays without a screen: real time, and lock-step for simulated sessions
    link.py          the connection to the support computer, in a thread of its own
    place.py         name of this computer, and whether another presenter runs on it
    triggers.py      the scanner's pulses from a serial or parallel port
    pins.py          a process that watches a pin of a parallel port
    priority.py      priority over other programs while a session runs
    markers.py       markers for the Lab Streaming Layer
    run.py           sessions, from the connection to the end
    selftest.py      keys, refresh rate, jitter, upload time, trigger, round trip: a report
    __main__.py      command line

It imports only `rtevo.wire` of rtevo, so that the stimulus PC needs only what PsychoPy installs (pyzmq, msgpack, numpy, pillow); headless
it needs pyzmq and msgpack.
"""
