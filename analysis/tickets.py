"""Shows how to search tickets and plot them in Python. The script has cells, which an editor can run one by one.

Call `python analysis/tickets.py` in a folder with an mlflow.db of tickets, or with MLFLOW_TRACKING_URI set. It prints
each result and writes tickets.png. It loads no model.
"""

# %% Every finished ticket is one row; its params, metrics and tags are columns.
from pathlib import Path

import pandas as pd

from lottery.progress import quiet_libraries
from lottery.report import figures, images, results

quiet_libraries()
tickets = results.search_tickets()
print(f"{len(tickets)} tickets of {', '.join(tickets['base'].unique())}")
print(tickets[["title", "base", "perplexity", "perplexity_ratio", "disk_ratio", "winner"]].to_string(max_rows=12))

# %% Perplexities compare under one protocol only. This takes the protocol of most tickets.
most = tickets["protocol"].value_counts().idxmax()
mine = tickets[(tickets["protocol"] == most) & (tickets["quantize"] == "none")]

# %% For each model, the winner with the most zeros.
winners = mine[mine["winner"] == "yes"]
best = winners.sort_values("sparsity_model").groupby("base").tail(1)
print(best[["base", "title", "sparsity_model", "perplexity_ratio", "run_id"]].to_string(index=False))

# %% Target against sparsity: the ratio to dense.
table = mine.pivot_table("perplexity_ratio", "target", "sparsity", aggfunc="min")
print(table.round(4).to_string(na_rep=""))

# %% The store applies any filter in MLflow's syntax: "metrics.perplexity_ratio < 1.1 and params.target = 'late'".
small: pd.DataFrame = results.search_tickets("metrics.disk_ratio < 0.9")
print(f"{len(small)} tickets are smaller than nine tenths of their base")

# %% Each figure is one function of a data frame.
figure = figures.plot_cliff(mine)
Path("tickets.png").write_bytes(images.to_png(figure))
print("tickets.png")
