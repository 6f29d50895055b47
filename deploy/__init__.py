"""What an installed medflow needs of this folder: prefect.yaml, and the job templates of work-pools/."""
