"""Conversations: chat templates, the prompts that they give, and what is said turn by turn.

``api`` is what ``Llama`` offers.  A template is found by ``sources``, compiled by ``template``
and run in ``sandbox``; ``rendering`` and ``encoder`` make token ids of it.  ``conversation``
keeps the turns and what of them the context still holds.
"""
