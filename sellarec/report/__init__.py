"""The report: notebooks executed through papermill, pages over what they made, and their figures as images."""
