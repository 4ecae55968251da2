"""The parts of the state machine in ``tests/store/test_state_machine.py``.

``model`` is what must be true, ``world`` what is driven; the rules stand by who acts: ``existing_software``,
``sending``, ``healing``, ``operating``; ``invariants`` compares after each step.
"""
