"""Is synthetic data worth it here? Prompts, real photos and a budget in; a measured recommendation out.

config.py says what is asked, photos.py and split.py set photos aside, plan.py says who is trained on what, commands.py
with which flags, run.py carries it out, compare.py and recommend.py say what follows, dry_run.py what it would cost.
"""
