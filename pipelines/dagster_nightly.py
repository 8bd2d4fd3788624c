"""The nightly job of a shop for Dagster.

    NIGHTLY_CONFIG=pipelines/shop.toml dagster dev -f pipelines/dagster_nightly.py

[nightly.schedule] of the config (or RECSYS_NIGHTLY__SCHEDULE__CRON) says when; Dagster's page has the switch.
"""

import os

from recsys.config import load_config
from recsys.nightly.dagster import definitions

defs = definitions(load_config(os.environ.get("NIGHTLY_CONFIG", "pipelines/shop.toml")))
