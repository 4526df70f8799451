"""The command that shows what judging has cost."""

from flows.cli.console import Debug, Json, emit, reported


def costs(as_json: Json = False, debug: Debug = False) -> None:
    """Show what judging has cost in this DPR_HOME, by the ledger that budgets are held to."""
    with reported(debug):
        from flows.cli.costs_view import spent_view
        from flows.judging_costs import spent_in
        from tasks.local_home import home_folder

        spent = spent_in(home_folder())
        emit({"spent": [each.as_dict() for each in spent]}, as_json, lambda: spent_view(spent))
