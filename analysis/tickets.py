"""How to ask the registry for tickets and plot them: a script in cells, for an editor that runs those, or all at once.

`python analysis/tickets.py` in a folder with an mlflow.db of tickets (or with MLFLOW_TRACKING_URI set) prints each answer
and leaves tickets.png. Nothing here loads a model.
"""

# %% Every finished ticket is one row: its parameters, metrics and tags by their names.
from pathlib import Path

import pandas as pd

from lottery.progress import quiet_libraries
from lottery.report import figures, images, results

quiet_libraries()
tickets = results.search_tickets()
print(f"{len(tickets)} tickets of {', '.join(tickets['base'].unique())}")
print(tickets[["title", "base", "perplexity", "perplexity_ratio", "disk_ratio", "winner"]].to_string(max_rows=12))

# %% Perplexities compare under one protocol only: here, the one of most tickets.
most = tickets["protocol"].value_counts().idxmax()
mine = tickets[(tickets["protocol"] == most) & (tickets["quantize"] == "none")]

# %% The winner with the most zeros, of each model.
winners = mine[mine["winner"] == "yes"]
best = winners.sort_values("sparsity_model").groupby("base").tail(1)
print(best[["base", "title", "sparsity_model", "perplexity_ratio", "run_id"]].to_string(index=False))

# %% Target against sparsity: the ratio to dense.
table = mine.pivot_table("perplexity_ratio", "target", "sparsity", aggfunc="min")
print(table.round(4).to_string(na_rep=""))

# %% What a filter of MLflow's can do, the store does: "metrics.perplexity_ratio < 1.1 and params.target = 'late'".
small: pd.DataFrame = results.search_tickets("metrics.disk_ratio < 0.9")
print(f"{len(small)} tickets are smaller than nine tenths of their base")

# %% A figure is one function of a data frame.
figure = figures.plot_cliff(mine)
Path("tickets.png").write_bytes(images.to_png(figure))
print("tickets.png")
